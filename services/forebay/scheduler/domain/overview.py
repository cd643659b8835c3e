"""What operators want to know of the core; it is only looked at."""

from dataclasses import dataclass
from typing import NamedTuple

from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler


@dataclass(slots=True)
class Waiting:
    """What waits of one class: how many requests, and for how many seconds the oldest has."""

    service_class: ServiceClass
    queued: int = 0
    oldest_s: float = 0.0


def waiting(core: Scheduler, now: float) -> dict[Pool, dict[ServiceClass, Waiting]]:
    """Returns what waits, by pool and class; O(n) in the number of requests that wait."""
    found: dict[Pool, dict[ServiceClass, Waiting]] = {}
    for queued in core.waiting:
        service_class = queued.request.service_class
        of_pool = found.setdefault(queued.pool, {})
        entry = of_pool.get(service_class) or of_pool.setdefault(service_class, Waiting(service_class))
        entry.queued += 1
        entry.oldest_s = max(entry.oldest_s, now - queued.enqueued_at)
    return {pool: {each: of_pool[each] for each in ServiceClass if each in of_pool} for pool, of_pool in found.items()}


class Standing(NamedTuple):
    """What a tenant has received in a pool and what it was owed, in tenths of a weighted token."""

    tenant_id: str
    received: int
    owed: float


def standings(pool: Pool) -> list[Standing]:
    """Returns how the tenants stand that a pool has served and remembers."""
    return [
        Standing(tenant.name, tenant.service_tenths, tenant.owed_tenths())
        for service_class in pool.flows.root.children.values()
        for tenant in service_class.children.values()
    ]


def fairness(standings: list[Standing]) -> float:
    """Returns Jain's index over what each tenant received for what it was owed; 1 when nobody was owed anything."""
    ratios = [each.received / each.owed for each in standings if each.owed > 0]
    squares = sum(ratio * ratio for ratio in ratios)
    return float(sum(ratios) ** 2 / (len(ratios) * squares)) if squares else 1.0
