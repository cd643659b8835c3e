"""The bounds of the core, and the rules that it follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.pressure import PressureRules
from forebay.scheduler.domain.request import ServiceClass


@dataclass(frozen=True, slots=True)
class Limits:
    """All of them.

    Attributes:
        max_queued, max_queued_per_tenant: requests that wait at a time.
        queue_timeout_s: the longest wait of a request that names none, or whose model no known worker serves.
        retry_after_s: what a refused router is told to wait.
        grant_expiry_s: within which the payload must reach the worker.
        forget_worker_s: after which a worker that is away is forgotten, with all it ran.
        class_weights: what each class counts for.
        pressure: what gives way when too much waits.
        pool, pools: how requests are placed, in a pool by its name and in any other.
        adapters: (model, adapter, tenant) that may be run.
    """

    max_queued: int = 10_000
    max_queued_per_tenant: int = 1_000
    queue_timeout_s: float = 30.0
    retry_after_s: float = 1.0
    grant_expiry_s: float = 2.0
    forget_worker_s: float = 600.0
    class_weights: Mapping[ServiceClass, int] = field(
        default_factory=lambda: {ServiceClass.GOLD: 50, ServiceClass.SILVER: 30, ServiceClass.BRONZE: 20}
    )
    pressure: PressureRules = field(default_factory=PressureRules)
    pool: PoolRules = field(default_factory=PoolRules)
    pools: Mapping[str, PoolRules] = field(default_factory=dict)
    adapters: frozenset[tuple[str, str, str]] = frozenset()
