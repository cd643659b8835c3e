"""Small worlds for the core: requests, workers, and an engine that generates a token a step for whatever runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from forebay.scheduler.domain.decisions import Decisions, Grant
from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.flow import Flow, Node
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import AttemptKey, Request, ServiceClass
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import Capacity, WorkerInfo

MODEL = "m"
EPOCH = 7

WHOLE = PoolRules(room=RoomRules(alpha=1.0), eviction=EvictionRules(after_s=float("inf")))
"""Rules that let a worker be filled to the last token, so that sums are easy, and evict nobody."""

_numbers = itertools.count(1)


def key(attempt: int = 1) -> AttemptKey:
    """A name that nothing else has."""
    return AttemptKey(f"{next(_numbers):032x}", attempt)


def request(tenant_id: str = "acme", **values: Any) -> Request:
    """A request of 10 + 10 tokens, unless said otherwise."""
    defaults: dict[str, Any] = {
        "key": key(),
        "service_class": ServiceClass.SILVER,
        "weight_milli": 1000,
        "model": MODEL,
        "prompt_tokens": 10,
        "max_tokens": 10,
    }
    return Request(tenant_id=tenant_id, **(defaults | values))


def capacity(kv_tokens: int = 1000, **values: Any) -> Capacity:
    """Room for many, in blocks of one token so that sums are easy."""
    defaults = {"block_tokens": 1, "max_num_seqs": 64, "max_num_batched_tokens": 10_000, "max_model_len": 10_000}
    return Capacity(kv_tokens=kv_tokens, **(defaults | values))


def info(
    worker_id: str = "w1", kv_tokens: int = 1000, *, incarnation: int = 1, pool: str = "", **values: Any
) -> WorkerInfo:
    """A worker of the model."""
    return WorkerInfo(
        id=worker_id,
        incarnation=incarnation,
        address=f"{worker_id}:1",
        model=MODEL,
        pool=pool,
        capacity=capacity(kv_tokens, **values),
    )


def scheduler(*workers: WorkerInfo, limits: Limits | None = None) -> Scheduler:
    """A core with workers that hold nothing."""
    core = Scheduler(limits or Limits(pool=WHOLE), EPOCH)
    for worker in workers:
        join(core, worker)
    return core


def join(core: Scheduler, worker: WorkerInfo, now: float = 0.0) -> None:
    """Registers a worker that holds nothing from before."""
    core.worker_registered(worker)
    core.worker_reported(worker.id, now)


def grants(decisions: Decisions) -> list[Grant]:
    """The new grants, in the order drawn."""
    return [grant for batch in decisions.batches for grant in batch.grants]


def granted(decisions: Decisions) -> list[AttemptKey]:
    """The attempts that were granted, in the order drawn."""
    return [grant.request.key for grant in grants(decisions)]


def reasons(decisions: Decisions) -> dict[AttemptKey, str]:
    """Why each rejected attempt was."""
    return {rejection.key: rejection.error.reason for rejection in decisions.rejections}


def flow(core: Scheduler, tenant_id: str) -> Flow[Any]:
    """A tenant's flow in the only pool; it must be busy, and the tenant must have no other."""
    (pool,) = core.pools
    (found,) = [flow for flow in pool.flows.flows() if flow.tenant.name == tenant_id]
    return found


def tenant(core: Scheduler, tenant_id: str) -> Node[Any]:
    """The node of a tenant in the only pool."""
    return flow(core, tenant_id).tenant


@dataclass
class Engine:
    """Runs what the core grants: the prompt in the first step, then a token a step, each step reported at once.

    Attributes:
        most_tokens: the most that were in flight after a step; law 4's M, less the last token of those that ended in it.
    """

    core: Scheduler
    lengths: dict[AttemptKey, int] = field(default_factory=dict)
    now: float = 0.0
    started: set[AttemptKey] = field(default_factory=set)
    most_tokens: int = 0
    _running: dict[AttemptKey, tuple[Grant, int]] = field(default_factory=dict)

    def flood(self, tenant_id: str, depth: int, make: Callable[[str], tuple[Request, int]]) -> None:
        """Keeps at least `depth` requests of a tenant waiting; `make` returns one and how many tokens it will yield."""
        waiting = sum(f.queued for pool in self.core.pools for f in pool.flows.flows() if f.tenant.name == tenant_id)
        for _ in range(depth - waiting):
            made, length = make(tenant_id)
            self.lengths[made.key] = length
            self.core.submit(made, "r", self.now)

    def step(self) -> None:
        """One engine step of 10 ms on every worker, after the core has decided."""
        for grant in grants(self.core.tick(self.now)):
            self.started.add(grant.request.key)
            self._running[grant.request.key] = (grant, 0)
        self.now += 0.01
        for attempt, (grant, generated) in list(self._running.items()):
            generated += 1
            if generated == self.lengths[attempt]:
                del self._running[attempt]
                self.core.departure(grant.worker_id, attempt, generated_tokens=generated, cached_tokens=0, started=True)
            else:
                self._running[attempt] = (grant, generated)
                self.core.progress(grant.worker_id, attempt, generated, prefilled=True)
        held = sum(grant.request.prompt_tokens + generated for grant, generated in self._running.values())
        self.most_tokens = max(self.most_tokens, held)
