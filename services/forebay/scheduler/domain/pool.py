"""Which waiting request goes to which worker next, within one pool of one model.

The order is that of the flow tree. The place is the worker that spares the most computing (a cached prefix, a loaded
adapter), then the one with the most room; and of the tenants that are owed nearly as much as the neediest one, whoever is
spared most goes first.

Head of line (rule P8, but stricter). When the head of the neediest flow fits nowhere, the worker with the most room is kept
for it and takes nothing else, while others are served elsewhere; the next head that does not fit keeps another worker, and so
on. Nothing of that is remembered: the neediest flow stays the neediest until it is served, since other counters fall only by
what the end of an attempt takes back, and who joins is lifted to just above it. So a large request cannot be held up by small
ones, and no budget of skips is needed. Letting up to 16 others pass, as was planned first, gave no more throughput on chat
traffic (770 against 769 tokens/s) and a larger service difference (400 against 342). A head that waits for longer than others
should make it wait has room made (eviction.py). A draw looks at no more than MAX_PASSED heads that do not fit, which bounds its
cost.

Lending. A pool's workers may be lent: while nobody waits in it, they serve the model's shared pool, up to `lent_share` of each.
The owner comes first again at once: guests are evicted for it, whatever that costs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from forebay.scheduler.domain.eviction import Budget, EvictionRules, recomputed, victims
from forebay.scheduler.domain.flow import Flow, Node
from forebay.scheduler.domain.flow_tree import FlowTree
from forebay.scheduler.domain.length_model import LengthModel
from forebay.scheduler.domain.request import Queued, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.worker import InFlight, Worker

MAX_PASSED = 16


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
        kv_tokens: the KV cache of the workers that served it at the last draw.
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
        self._borrowed: list[Pool] = []
        self._borrowed_by = 0  # the version of `lengths`
        self.lengths = LengthModel()
        self.queued = 0
        self.kv_tokens = 0
        self.budget = Budget(rules.eviction)
        self.evictions: list[InFlight] = []

    @property
    def empty(self) -> bool:
        """Whether nobody would miss the pool."""
        return not self.workers and not self.queued and not self.flows.root.in_flight

    @property
    def served(self) -> bool:
        """Whether a worker is present, its own or a lent one."""
        return any(worker.present for worker in self._serving())

    @property
    def takes_adapters(self) -> bool:
        """Whether a known worker takes adapters; always so while none is known."""
        return not self.workers or any(worker.info.capacity.max_adapters for worker in self.workers.values())

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

    def unpark(self, queued: Queued) -> None:
        """Gives a waiting request another chance, if no worker could run it."""
        self.flows.unpark_one(queued.flow, queued)

    def worker_came(self) -> None:
        """Gives every waiting request another chance; a worker may be present that can run what no other could."""
        self.flows.unpark()

    def draw(self, now: float) -> Iterator[tuple[Queued, Worker]]:
        """Yields who runs where, neediest first, while anyone fits.

        The caller must have each request run, in its flow and on the worker, before it asks for the next: that is what moves
        the draw on.
        """
        self._borrow()
        present = [worker for worker in self._serving() if worker.present]
        self.kv_tokens = sum(worker.info.capacity.usable_kv_tokens for worker in present)
        workers = present.copy()  # less those that are kept
        if not workers:
            return
        passed: list[Flow[Queued]] = []
        capped: list[Node[Queued]] = []
        try:
            while len(passed) < MAX_PASSED:
                if (flow := self.flows.neediest()) is None:
                    if len(capped) != 1 or any(other.tenant is not capped[0] for other in passed):
                        return
                    self.flows.put_back(capped.pop())  # nobody else waits any more
                    continue
                head = flow.head
                able = [worker for worker in workers if worker.may_run(head)]
                if not able and not any(worker.may_run(head) for worker in present):
                    # No worker that is here could run it: it must not hold up the rest of its flow.
                    self.flows.park(flow, head, head.place)
                    continue
                tenant = flow.tenant
                if self._full(tenant) and (
                    capped or any(other.tenant is not tenant for other in passed) or self.flows.others_wait(tenant)
                ):
                    self.flows.set_aside(tenant)
                    capped.append(tenant)
                    continue
                if able:
                    fitting = [worker for worker in able if worker.has_room_for(head, now)]
                    if not fitting and not passed:
                        fitting = self._evict_for(head, able, now)
                    if fitting:
                        yield self._best(head, fitting, workers, now)
                        continue
                    workers.remove(_roomiest(able, head.request))  # it is kept for this one
                    if not workers:
                        return
                self.flows.set_aside(flow)
                passed.append(flow)
        finally:
            for node in (*passed, *capped):
                self.flows.put_back(node)

    def take_evictions(self) -> list[InFlight]:
        """Returns what is to be evicted, once."""
        evictions, self.evictions = self.evictions, []
        return evictions

    def _borrow(self) -> None:
        """Looks which lenders have nobody waiting.

        A parked request may run on the workers of a lender that had somebody waiting before. It may also fit into what is lent
        now that shorter answers are expected.
        """
        if not self.lenders and not self._borrowed:
            return
        before, expected_before = self._borrowed, self._borrowed_by
        self._borrowed_by = self.lengths.version
        self._borrowed = [lender for lender in self.lenders if lender.flows.neediest() is None]
        if any(lender not in before for lender in self._borrowed) or (
            self._borrowed and self._borrowed_by != expected_before
        ):
            self.flows.unpark()

    def _serving(self) -> Iterator[Worker]:
        yield from self.workers.values()
        for lender in self._borrowed:
            yield from lender.workers.values()

    def _best(self, head: Queued, fitting: list[Worker], workers: list[Worker], now: float) -> tuple[Queued, Worker]:
        """Returns the request and the worker to take, when `head` is owed most and fits."""
        best = head, _roomiest(fitting, head.request)
        if not head.request.prefix_hashes and not head.request.adapter:
            return best
        most = best[1].saves(head.request)
        for flow in self.flows.near(self.rules.near, self.rules.near_tenths):
            other = flow.head
            if flow.tenant is not head.flow.tenant and self._full(flow.tenant):
                continue  # the one that is owed most waits
            for worker in workers:
                saved = worker.saves(other.request)
                if saved > most and worker.may_run(other) and worker.has_room_for(other, now):
                    best, most = (other, worker), saved
        return best

    def _full(self, tenant: Node[Queued]) -> bool:
        """Whether a tenant has as much as it may have while others wait."""
        rules = self.rules.room
        return bool(
            (rules.tenant_in_flight and tenant.in_flight >= rules.tenant_in_flight)
            or (rules.tenant_kv_share and tenant.kv_tokens >= rules.tenant_kv_share * self.kv_tokens)
        )

    def _evict_for(self, queued: Queued, able: list[Worker], now: float) -> list[Worker]:
        """Returns the worker on which room was made for a request that has waited for it long enough, if there is one.

        The room is promised at once: the request needs as long to get there as the eviction does.
        """
        if queued.blocked_since is None:
            queued.blocked_since = now
        found = victims(queued, now - queued.blocked_since, able, self.rules.eviction, now)
        if not found or not self.budget.spend(recomputed(entry for entry in found if entry.pool is self)):
            return []
        for entry in found:
            entry.evicted = True
        self.evictions += found
        worker = found[0].worker
        worker.moved()
        return [worker]


def _roomiest(workers: list[Worker], request: Request) -> Worker:
    """Returns the worker that spares a request most, of these the one with the most of its cache free, then the idlest."""
    if len(workers) == 1:
        return workers[0]
    return min(
        workers,
        key=lambda worker: (
            -worker.saves(request),
            worker.peak.tokens / worker.info.capacity.kv_tokens,
            len(worker.in_flight),
            worker.info.id,
        ),
    )
