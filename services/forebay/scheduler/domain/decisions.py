"""What a tick yields: values that the sessions carry out."""

from dataclasses import dataclass

from forebay.errors import MeshError
from forebay.scheduler.domain.request import AttemptKey, Measure, Request


@dataclass(frozen=True, slots=True)
class Grant:
    """One attempt may run on one worker.

    Attributes:
        router: the session that is to hear of it.
        kv_tokens: the most that it may come to.
        priority: the engine's; lower runs first.
        enqueued_at, granted_at, expires_at: on the scheduler's clock; the payload must reach the worker by the last.
        queue_depth: requests that waited in the pool when it was drawn.
        measures: what was done to it because the pool was under pressure.
    """

    request: Request
    router: str
    worker_id: str
    worker_incarnation: int
    worker_address: str
    epoch: int
    batch_id: int
    kv_tokens: int
    priority: int
    enqueued_at: float
    granted_at: float
    expires_at: float
    queue_depth: int
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """The grants of one draw for one worker, in the order drawn."""

    worker_id: str
    batch_id: int
    epoch: int
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One attempt will not run, and why."""

    key: AttemptKey
    router: str
    error: MeshError


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A batch entry that will not come."""

    key: AttemptKey
    worker_id: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """A running attempt that its worker is to hand over."""

    key: AttemptKey
    worker_id: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """All that one tick decided.

    Attributes:
        batches: at most one for each worker.
        repeats: grants given before, for routers that asked again.
    """

    batches: tuple[Batch, ...] = ()
    repeats: tuple[Grant, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    withdrawals: tuple[Withdrawal, ...] = ()
    evictions: tuple[Eviction, ...] = ()
