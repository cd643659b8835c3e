"""The scheduler's configuration."""

import math
from collections import Counter
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from forebay.config import Address, ServiceConfig, anywhere
from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.pressure import PressureRules
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.room import RoomRules

_ROOM, _EVICTION, _PLACE, _PRESSURE = RoomRules(), EvictionRules(), PoolRules(), PressureRules()

Part = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$", json_schema_extra={"form": "1 to 63 of a-z, 0-9 and -"})]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassWeights(_Section):
    """What the service classes count for against each other."""

    gold: int = Field(default=50, ge=1, le=1_000, description="weight of gold")
    silver: int = Field(default=30, ge=1, le=1_000, description="weight of silver")
    bronze: int = Field(default=20, ge=1, le=1_000, description="weight of bronze")


class RoomConfig(_Section):
    """How full a worker may be made."""

    alpha: float = Field(
        default=_ROOM.alpha, gt=0, le=1, description="part of the KV cache that the future peak may take"
    )
    favoured_alpha: float = Field(
        default=_ROOM.favoured_alpha, gt=0, le=1, description="the same for tenants that hold little of their share"
    )
    favoured_below: Part = Field(
        default=_ROOM.favoured_below, description="part of its share below which a tenant holds little"
    )
    lowest_alpha: float = Field(
        default=_ROOM.lowest_alpha, gt=0, le=1, description="how far preemptions lower alpha at most"
    )
    preemption_cost: Part = Field(default=_ROOM.preemption_cost, description="what each preemption takes from alpha")
    recovery_per_s: Part = Field(default=_ROOM.recovery_per_s, description="what a second gives back to alpha")
    prefill_steps: int = Field(
        default=_ROOM.prefill_steps,
        ge=1,
        le=64,
        description="steps' worth of prompts that may wait for prefill on a worker",
    )
    tenant_kv_share: Part = Field(
        default=_ROOM.tenant_kv_share,
        description="most of a pool's KV cache for one tenant while others wait; 0 for no bound",
    )
    tenant_in_flight: int = Field(
        default=_ROOM.tenant_in_flight,
        ge=0,
        description="most requests of one tenant while others wait; 0 for no bound",
    )
    lent_share: Part = Field(default=_ROOM.lent_share, description="most of a lent worker's KV cache for its guests")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.lowest_alpha <= self.alpha <= self.favoured_alpha:
            raise ValueError("lowest_alpha, alpha and favoured_alpha must be in this order, the smallest first")
        return self

    def rules(self) -> RoomRules:
        """Returns the core's rules."""
        return RoomRules(**self.model_dump())


class EvictionConfig(_Section):
    """Whose running requests give way to one that has waited long enough."""

    enabled: bool = Field(default=True, description="whether requests are evicted at all")
    after_s: float = Field(
        default=_EVICTION.after_s, ge=0, le=60, description="wait of a tenant that has nothing in flight"
    )
    more_s: float = Field(
        default=_EVICTION.more_s, ge=0, le=3600, description="further wait of a tenant that has its share"
    )
    margin: float = Field(
        default=_EVICTION.margin,
        ge=1,
        le=100,
        description="how much fuller than the one that asks a tenant is that gives way",
    )
    budget: Part = Field(
        default=_EVICTION.budget, description="tokens that may be computed again, for each token computed"
    )
    budget_tokens: int = Field(default=_EVICTION.budget_tokens, ge=0, description="the most of them at a time")
    most: int = Field(default=_EVICTION.most, ge=1, le=64, description="requests evicted for one")

    def rules(self) -> EvictionRules:
        """Returns the core's rules."""
        values = self.model_dump(exclude={"enabled"})
        return EvictionRules(**(values if self.enabled else values | {"after_s": math.inf}))


class LocalityConfig(_Section):
    """How far a cached prefix or a loaded adapter may go before fairness."""

    tenants: int = Field(
        default=_PLACE.near, ge=0, le=1_000, description="tenants among which the best hit is looked for"
    )
    slack_tenths: int = Field(
        default=_PLACE.near_tenths,
        ge=0,
        description="tenths of a weighted token by which they may be ahead of the neediest",
    )


class PressureConfig(_Section):
    """From which part of max_queued on each measure is taken."""

    pace_from: Part = Field(
        default=_PRESSURE.pace_from, description="tenants with more than their part of the queue are paced"
    )
    paced_s: float = Field(default=_PRESSURE.paced_s, ge=0, le=60, description="how long a paced request is held back")
    shorten_from: Part = Field(
        default=_PRESSURE.shorten_from, description="max_tokens is lowered where the client allows it"
    )
    shed_bronze_from: Part = Field(
        default=_PRESSURE.shed_from[ServiceClass.BRONZE], description="bronze is turned away"
    )
    shed_silver_from: Part = Field(
        default=_PRESSURE.shed_from[ServiceClass.SILVER], description="silver is turned away"
    )
    shed_gold_from: Part = Field(default=_PRESSURE.shed_from[ServiceClass.GOLD], description="gold is turned away")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        steps = (
            self.pace_from, self.shorten_from, self.shed_bronze_from, self.shed_silver_from, self.shed_gold_from,
        )  # fmt: skip
        if list(steps) != sorted(steps):
            raise ValueError("measures must follow each other: pace, shorten, shed bronze, silver, gold")
        return self

    def rules(self) -> PressureRules:
        """Returns the core's rules."""
        return PressureRules(
            pace_from=self.pace_from,
            shorten_from=self.shorten_from,
            shed_from={
                ServiceClass.BRONZE: self.shed_bronze_from,
                ServiceClass.SILVER: self.shed_silver_from,
                ServiceClass.GOLD: self.shed_gold_from,
            },
            paced_s=self.paced_s,
        )


class PoolConfig(_Section):
    """A dedicated pool: tenants whose policy names it, and workers that are started for it."""

    name: Name = Field(description="as in tenants' policies and workers' configurations")
    lends: bool = Field(
        default=False, description="whether its workers serve the model's shared pool while nobody waits here"
    )
    room: RoomConfig | None = Field(
        default=None, description="how full its workers may be made; as everywhere by default"
    )
    eviction: EvictionConfig | None = Field(default=None, description="who gives way in it; as everywhere by default")


class AdapterConfig(_Section):
    """An adapter, and whose it is."""

    name: str = Field(min_length=1, max_length=256, description="as in tenants' policies")
    model: str = Field(min_length=1, max_length=256, description="the model that it is for")
    tenant: Name = Field(description="the only tenant that may run with it")


class SchedulerConfig(ServiceConfig):
    """All that can be set."""

    service: ClassVar[str] = "scheduler"

    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?|unix|redis\+cluster)://",
        description="the Redis or Valkey with the lease; without it there must be no other scheduler",
        json_schema_extra={"form": "a URL that begins with redis://, rediss://, unix:// or redis+cluster://"},
    )
    domain: str = Field(
        "default",
        pattern=r"^[a-z0-9-]{1,63}$",
        description="lending domain; its schedulers have one leader",
        json_schema_extra={"form": "1 to 63 of a-z, 0-9 and -"},
    )
    advertise: Address | None = Field(
        None, description="host:port where routers and workers reach this scheduler; by default the one it listens on"
    )
    max_queued: int = Field(10_000, ge=1, le=1_000_000, description="requests that may wait at a time")
    max_queued_per_tenant: int = Field(1_000, ge=1, le=1_000_000, description="requests of one tenant that may wait")
    queue_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="longest wait of a request that sets no limit, or whose model has no worker"
    )
    retry_after_s: float = Field(1.0, ge=0, le=3600, description="wait proposed to a caller that was turned away")
    grant_expiry_s: float = Field(
        2.0, gt=0, le=60, description="time for a payload to reach its worker after the grant"
    )
    forget_worker_s: float = Field(600.0, gt=0, description="after which a worker that is away is forgotten")
    class_weights: ClassWeights = Field(ClassWeights(), description="weights of the classes: gold, silver, bronze")
    room: RoomConfig = Field(RoomConfig(), description="how full a worker may be made")
    eviction: EvictionConfig = Field(EvictionConfig(), description="who gives way to a request that has waited enough")
    locality: LocalityConfig = Field(LocalityConfig(), description="what cached prefixes and loaded adapters count for")
    pressure: PressureConfig = Field(PressureConfig(), description="what gives way when too much waits")
    pools: tuple[PoolConfig, ...] = Field(
        (), max_length=1_000, description="dedicated pools; the shared pool of each model is always there"
    )
    adapters: tuple[AdapterConfig, ...] = Field(
        (), max_length=10_000, description="adapters that may be run with, and whose they are"
    )
    # There is nothing to finish here: sessions never end by themselves, and a restart breaks no stream.
    drain_s: float = Field(
        0.5, ge=0, le=3600, description="how long calls that run may go on after SIGTERM, in seconds"
    )

    @model_validator(mode="after")
    def _is_found(self) -> Self:
        if self.redis_url is not None and self.advertise is None and anywhere(self.listen):
            raise ValueError(f"advertise must be given: a follower cannot send anybody to {self.listen}")
        return self

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = Counter(pool.name for pool in self.pools)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"pools: {', '.join(twice)}: a pool is named once")
        return self

    def limits(self) -> Limits:
        """Returns the bounds and rules of the core."""
        weights = self.class_weights
        return Limits(
            max_queued=self.max_queued,
            max_queued_per_tenant=self.max_queued_per_tenant,
            queue_timeout_s=self.queue_timeout_s,
            retry_after_s=self.retry_after_s,
            grant_expiry_s=self.grant_expiry_s,
            forget_worker_s=self.forget_worker_s,
            class_weights={
                ServiceClass.GOLD: weights.gold,
                ServiceClass.SILVER: weights.silver,
                ServiceClass.BRONZE: weights.bronze,
            },
            pressure=self.pressure.rules(),
            pool=self._pool_rules(None),
            pools={pool.name: self._pool_rules(pool) for pool in self.pools},
            adapters=frozenset((adapter.model, adapter.name, adapter.tenant) for adapter in self.adapters),
        )

    def _pool_rules(self, pool: PoolConfig | None) -> PoolRules:
        return PoolRules(
            room=((pool and pool.room) or self.room).rules(),
            eviction=((pool and pool.eviction) or self.eviction).rules(),
            lends=pool is not None and pool.lends,
            near=self.locality.tenants,
            near_tenths=self.locality.slack_tenths,
        )
