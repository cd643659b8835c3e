"""Whose running request gives way to one that has waited long enough.

Fair choice alone leaves a tail: a tenant that asks seldom is next in line at once, but waits until somebody's long answer ends.
So after `after_s` the newest requests of the flow that is furthest above its share of the KV cache are handed over, until the one
that waits fits. They lose no token: their router has what was generated, and submits the rest as a continuation, which is
computed again at the mesh's expense and charged to nobody (rule P6).

Who may ask: a request whose tenant, with it, stays within its share. Who may be asked: a tenant above its own share, or a
guest in a pool that was lent. So nobody is evicted for one who has more, and two never evict each other in turn: to be evicted
a tenant must be above its share, and what makes way for it while below it cannot.

What it costs is bounded by a budget: the tokens to be computed again may not exceed `budget` times those that the pool computes
and `budget_tokens` at a time. Without it, a crowd of small tenants would have the engine recompute all day.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.scheduler.domain.peak import Peak
from forebay.scheduler.domain.request import Queued
from forebay.scheduler.domain.worker import InFlight, Worker


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """When requests may be evicted.

    Attributes:
        after_s: how long a request must have been the one that does not fit; infinity for never.
        budget: tokens that may be computed again, per token computed.
        budget_tokens: the most of them at a time.
        most: requests evicted for one.
    """

    after_s: float = 0.25
    budget: float = 0.05
    budget_tokens: int = 8_192
    most: int = 4


class Budget:
    """What may be computed again, in tokens; earned by what is computed."""

    def __init__(self, rules: EvictionRules) -> None:
        self._rules = rules
        self._tokens = float(rules.budget_tokens)

    def earn(self, tokens: int) -> None:
        """Notes tokens computed."""
        self._tokens = min(self._rules.budget_tokens, self._tokens + tokens * self._rules.budget)

    def allows(self, tokens: int) -> bool:
        """Whether so many may be computed again."""
        return tokens <= self._tokens

    def spend(self, tokens: int) -> None:
        """Notes tokens that will be computed again."""
        self._tokens -= tokens


def victims(queued: Queued, workers: Iterable[Worker], rules: EvictionRules, now: float) -> list[InFlight]:
    """Returns the attempts, all on one worker, that make room for a request when they are handed over; the cheapest such set.

    Empty when no worker can be made to fit it by what may be evicted.
    """
    best: list[InFlight] = []
    for worker in workers:
        found = _victims_on(worker, queued, rules, now)
        if found and (not best or _cost(found) < _cost(best)):
            best = found
    return best


def recomputed(entry: InFlight) -> int:
    """Returns the tokens that are computed again when an attempt is evicted."""
    return entry.prompt_tokens + entry.generated - entry.unprefilled


def _cost(entries: list[InFlight]) -> int:
    return sum(map(recomputed, entries))


def _victims_on(worker: Worker, queued: Queued, rules: EvictionRules, now: float) -> list[InFlight]:
    if worker.kept_for not in (None, queued) or any(entry.evicted for entry in worker.in_flight.values()):
        return []
    future, bound = worker.future(queued), worker.bound(now, favoured=True)
    staying = list(worker.in_flight.values())
    found: list[InFlight] = []
    while len(found) < rules.most:
        entry = _next_victim(staying, found, queued)
        if entry is None:
            return []
        found.append(entry)
        staying.remove(entry)
        if Peak((entry.remaining, entry.held) for entry in staying).with_one(*future) <= bound or not staying:
            return found
    return []


def _next_victim(staying: list[InFlight], found: list[InFlight], queued: Queued) -> InFlight | None:
    """Returns the newest request of whoever is furthest above its share, as it is with those found gone."""
    gone: dict[object, int] = {}
    for entry in found:
        if entry.flow is not None:
            gone[entry.flow.tenant] = gone.get(entry.flow.tenant, 0) + entry.expected_tokens
    worst: InFlight | None = None
    worst_excess = 1.0
    for entry in reversed(staying):
        if entry.flow is None:
            continue
        tenant = entry.flow.tenant
        if entry.pool is not entry.worker.pool and queued.pool is entry.worker.pool:
            return entry
        if tenant is queued.flow.tenant or entry.pool is not queued.pool:
            continue
        excess = (tenant.kv_tokens - gone.get(tenant, 0)) / (tenant.share * entry.pool.kv_tokens)
        if excess > worst_excess:
            worst, worst_excess = entry, excess
    return worst
