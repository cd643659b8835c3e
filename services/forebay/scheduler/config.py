"""The scheduler's configuration."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from forebay.config import Address, ServiceConfig
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.request import ServiceClass


class ClassWeights(BaseModel):
    """What the service classes count for against each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gold: int = Field(default=50, ge=1, le=1_000, description="weight of gold")
    silver: int = Field(default=30, ge=1, le=1_000, description="weight of silver")
    bronze: int = Field(default=20, ge=1, le=1_000, description="weight of bronze")


class SchedulerConfig(ServiceConfig):
    """All that can be set."""

    service: ClassVar[str] = "scheduler"

    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?|unix|redis\+cluster)://",
        description="the Redis or Valkey with the lease; without it there must be no other scheduler",
    )
    domain: str = Field(
        "default", pattern=r"^[a-z0-9-]{1,63}$", description="lending domain; its schedulers have one leader"
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
    # There is nothing to finish here: sessions never end by themselves, and a restart breaks no stream.
    drain_seconds: float = Field(0.5, ge=0, le=3600, description="how long running calls may go on after SIGTERM")

    def limits(self) -> Limits:
        """Returns the bounds of the core."""
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
        )
