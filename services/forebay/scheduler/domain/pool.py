"""Which waiting request goes to which worker next, within one pool of one model.

The order is that of the flow tree. The place is the worker that spares the most computing (a cached prefix, a loaded
adapter), then the one with the most room; and of the tenants that are owed nearly as much as the neediest one, whoever is
spared most goes first.

Where order and room disagree, because the head of the neediest flow fits nowhere, rule P8 decides: up to MAX_SKIPS others are
served before it, or for MAX_SKIP_S, so that room does not lie idle; after that the freed room of one worker is kept for it,
so that small requests cannot hold up a large one for ever. The budget of skips is the flow's and not the head's: it
is new only when the flow has caught up. Law 4 leaves these intervals out. A draw looks at no more than MAX_SKIPS heads that
do not fit, which bounds its cost. A head that waits for longer than others should make it wait has room made (eviction.py).

Lending. A pool's workers may be lent: while nobody waits in it, they serve the model's shared pool, up to `lent_share` of each.
The owner comes first again at once: guests are evicted for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from forebay.scheduler.domain.eviction import Budget, EvictionRules, recomputed, victims
from forebay.scheduler.domain.flow_tree import Flow, FlowTree
from forebay.scheduler.domain.length_model import LengthModel
from forebay.scheduler.domain.request import Queued, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.worker import InFlight, Worker

MAX_SKIPS = 16
MAX_SKIP_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolRules:
    """How the requests of a pool are placed.

    Attributes:
        lends: whether its idle workers serve the model's shared pool.
        near: among so many tenants the best prefix hit is looked for.
        near_tenths: of service, by which they may be ahead of the neediest; law 4's delta.
    """

    room: RoomRules = field(default_factory=RoomRules)
    eviction: EvictionRules = field(default_factory=EvictionRules)
    lends: bool = False
    near: int = 8
    near_tenths: int = 10_240


class Pool:
    """The flows and workers of one pool.

    Attributes:
        name: empty for the model's shared pool.
        workers: every worker known to serve it, those that are away too.
        lenders: pools whose workers serve this one while nobody waits there.
        queued: how many requests wait, those parked and held back included.
        kv_tokens: the KV cache of its own workers that are present.
        budget: what evictions may cost.
        evictions: what is to be evicted, until it is taken.
    """

    def __init__(self, model: str, name: str, rules: PoolRules) -> None:
        self.model = model
        self.name = name
        self.rules = rules
        self.flows: FlowTree[Queued] = FlowTree()
        self.workers: dict[str, Worker] = {}
        self.lenders: list[Pool] = []
        self.lengths = LengthModel()
        self.queued = 0
        self.kv_tokens = 0
        self.budget = Budget(rules.eviction)
        self.evictions: list[InFlight] = []

    @property
    def empty(self) -> bool:
        """Whether nobody would miss the pool."""
        return not self.workers and not self.queued and not self.flows.root.in_flight

    def too_large(self, request: Request) -> bool:
        """Whether no known worker could ever hold the request; never so while none is known."""
        return bool(self.workers) and not any(w.info.capacity.can_ever_hold(request) for w in self.workers.values())

    def holds_little(self, queued: Queued, need: int) -> bool:
        """Whether a request's tenant would, with so many KV tokens more, have only a small part of its share."""
        tenant = queued.flow.tenant
        allowed = self.rules.room.favoured_below * tenant.share * self.kv_tokens
        return tenant.kv_tokens + need <= allowed

    def enqueue(self, queued: Queued) -> None:
        """Adds a request that waits to its flow."""
        self.flows.enqueue(queued.flow, queued, queued.place)

    def dequeue(self, queued: Queued) -> None:
        """Takes a request out of its flow, whether it is to run or not."""
        self.flows.dequeue(queued.flow, queued)
        if queued.keeps is not None:
            queued.keeps.kept_for = None
            queued.keeps = None

    def worker_came(self) -> None:
        """Gives every waiting request another chance; a worker may be present that can run what no other could."""
        self._count_kv_tokens()
        self.flows.unpark()

    def worker_left(self, worker: Worker) -> None:
        """Gives up what was kept on a worker that takes no more."""
        self._count_kv_tokens()
        if worker.kept_for is not None:
            worker.kept_for.keeps = None
            worker.kept_for = None

    def draw(self, now: float) -> Iterator[tuple[Queued, Worker]]:
        """Yields who runs where, neediest first, while anyone fits.

        The caller must take each request out of the queue, charge its flow and give it the worker's room before it asks for
        the next: that is what moves the draw on.
        """
        workers = [worker for worker in self._serving() if worker.present]
        for worker in workers:
            kept = worker.kept_for
            if kept is not None and kept.pool is self and worker.has_room_for(kept, now):
                yield kept, worker
        aside: list[Flow[Queued]] = []
        passed: list[Queued] = []
        last: Flow[Queued] | None = None
        try:
            while len(passed) <= MAX_SKIPS:
                flow = self.flows.neediest()
                if last is not None and flow is not last:
                    last.skips, last.skipped_since = 0, None  # it has caught up
                if flow is None:
                    break
                head = flow.head
                able = [worker for worker in workers if worker.may_run(head)]
                if not able:
                    # No worker that is here could run it: it must not hold up the rest of its flow.
                    self.flows.park(flow, head, head.place)
                    continue
                if self._capped(flow, aside):
                    self.flows.set_aside(flow)
                    aside.append(flow)
                    continue
                fitting = [worker for worker in able if worker.has_room_for(head, now)]
                fitting = fitting or self._evict_for(head, able, now)
                if not fitting:
                    self.flows.set_aside(flow)
                    aside.append(flow)
                    passed.append(head)
                    self._keep_if_overdue(head, now)
                    if all(worker.full(now) for worker in workers):
                        break
                    continue
                head, worker = self._best(head, fitting, workers, now)
                last = head.flow
                yield head, worker
                for other in passed:
                    other.flow.skips += 1
                    other.flow.skipped_since = now if other.flow.skipped_since is None else other.flow.skipped_since
                    self._keep_if_overdue(other, now)
        finally:
            for flow in aside:
                self.flows.put_back(flow)

    def take_evictions(self) -> list[InFlight]:
        """Returns what is to be evicted, once."""
        evictions, self.evictions = self.evictions, []
        return evictions

    def _serving(self) -> Iterator[Worker]:
        yield from self.workers.values()
        for lender in self.lenders:
            if lender.flows.neediest() is None:
                yield from lender.workers.values()

    def _best(self, head: Queued, fitting: list[Worker], workers: list[Worker], now: float) -> tuple[Queued, Worker]:
        """Returns the request and the worker to take, when `head` is owed most and fits."""
        best = head, min(fitting, key=lambda worker: _rank(worker, head.request))
        if not head.request.prefix_hashes and not head.request.adapter:
            return best
        most = best[1].saves(head.request)
        for flow in self.flows.near(self.rules.near, self.rules.near_tenths):
            other = flow.head
            for worker in workers:
                saved = worker.saves(other.request)
                if saved > most and worker.may_run(other) and worker.has_room_for(other, now):
                    best, most = (other, worker), saved
        return best

    def _capped(self, flow: Flow[Queued], aside: list[Flow[Queued]]) -> bool:
        """Whether the flow's tenant has as much as it may have while others wait."""
        tenant, rules = flow.tenant, self.rules.room
        over = (rules.tenant_in_flight and tenant.in_flight >= rules.tenant_in_flight) or (
            rules.tenant_kv_share and tenant.kv_tokens >= rules.tenant_kv_share * self.kv_tokens
        )
        return bool(over) and any(other.tenant is not tenant for other in self._others(flow, aside))

    def _others(self, flow: Flow[Queued], aside: list[Flow[Queued]]) -> Iterator[Flow[Queued]]:
        yield from aside
        self.flows.set_aside(flow)
        other = self.flows.neediest()
        self.flows.put_back(flow)
        if other is not None:
            yield other

    def _keep_if_overdue(self, queued: Queued, now: float) -> None:
        flow = queued.flow
        if queued.keeps is not None or flow.skipped_since is None:
            return
        if flow.skips < MAX_SKIPS and now - flow.skipped_since < MAX_SKIP_S:
            return
        free = [w for w in self._serving() if w.kept_for is None and w.may_run(queued)]
        if free:
            queued.keeps = min(free, key=lambda worker: _rank(worker, queued.request))
            queued.keeps.kept_for = queued

    def _evict_for(self, queued: Queued, able: list[Worker], now: float) -> list[Worker]:
        """Returns the worker on which room was made for a request that has waited for it long enough, if there is one.

        The room is promised at once: the request needs as long to get there as the eviction does.
        """
        if queued.blocked_since is None:
            queued.blocked_since = now
        tenant, rules = queued.flow.tenant, self.rules.eviction
        # The owner of lent workers has its place at once, whatever it holds.
        if not any(worker.lent for worker in able if worker.pool is self):
            if now - queued.blocked_since < rules.after_s:
                return []
            if tenant.kv_tokens + able[0].expected_tokens(queued) > tenant.share * self.kv_tokens:
                return []
        found = victims(queued, able, rules, now)
        cost = sum(map(recomputed, found))
        if not found or not self.budget.allows(cost):
            return []
        self.budget.spend(cost)
        for entry in found:
            entry.evicted = True
        self.evictions += found
        worker = found[0].worker
        worker.moved()
        return [worker]

    def _count_kv_tokens(self) -> None:
        self.kv_tokens = sum(w.info.capacity.usable_kv_tokens for w in self.workers.values() if w.present)


def _rank(worker: Worker, request: Request) -> tuple[int, float, int, str]:
    """Orders workers for a request: what it is spared there, then the free part of its cache, then how few run there."""
    used = worker.peak.tokens / worker.info.capacity.kv_tokens
    return -worker.saves(request), used, len(worker.in_flight), worker.info.id
