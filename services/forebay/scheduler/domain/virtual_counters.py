"""Weighted virtual token counters: who is owed the next service.

Source. VTC is from Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each client has a counter of the
service it has received, and the next request is taken from the client with the smallest. Service is tokens, not requests and
not turns, since a turn costs whatever its sender likes. The weighted form divides service by weight, as weighted fair
queueing does (Demers, Keshav and Shenker 1989), and the lift of a returning client plays the part that the system's virtual
time plays there.

How service is counted. A request is charged twice: on dispatch for its input, which is known then, and for each generated
token as its worker reports it, which is not known before. In tenths of a weighted token an input token costs 10, one
that came from the prefix cache 1, a generated one 20. Whether input was cached is known only at the end, so dispatch charges
it in full and the departure takes the difference back. A continuation of tokens already delivered is charged no input.

Arithmetic. A counter is service divided by weight. Floats lose the small differences that fairness is about once the sums
are large, and exact fractions grow a denominator with every weight that a lift has met. So a counter is an integer number of
1/RESOLUTION steps, and the remainder of each division is carried to the next charge: after any number of charges the counter
is exactly floor(service x RESOLUTION / weight) above where its flow was last lifted to. One step is below a millionth of a token.

The lift. A flow that begins to wait again is lifted to the smallest counter among the waiting flows; when none waits, to
that of the flow that stopped waiting last. Idle time earns nothing: without it a tenant that slept for an hour would be
owed an hour. Lifting to the largest counter, or to the average, would punish those who come and go.

Invariants.
1. A flow is in the heap exactly while something waits in its queue, save for flows set aside during one draw.
2. Counters fall only by what the end of an attempt takes back, which is at most what its dispatch charged.
3. A flow is chosen only while no other waiting flow has a smaller counter, or those that have were passed over by rule P8. So of
   two flows that wait throughout, one gets ahead of the other by no more than the charges of the requests that it then has
   in flight: the bound of law 4.

Cost. Choosing is O(1); charging, joining and leaving are O(log n) in the number of waiting flows.

Rejected. Round robin by turns and input-only deficit round robin: who asks for long answers wins. Least attained service
without the lift: idleness is credit. Charging the expected output on dispatch: it narrows the bound when the guess is good,
and is left until a benchmark wants it.

The flows are siblings here: class weight times tenant weight is one number. The tree class, tenant, key nests these same
counters, one set at each node, with `neediest` called from the root down.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from forebay.scheduler.domain.indexed_heap import IndexedHeap

INPUT_TENTHS = 10
CACHED_TENTHS = 1
OUTPUT_TENTHS = 20

RESOLUTION = 1 << 20
"""Steps of a counter per tenth of a weighted token at weight 1."""

MAX_IDLE_FLOWS = 10_000
"""Idle flows remembered in each pool. The longest idle is forgotten first: the lift would raise it in any case."""

Place = tuple[float, int]
"""Where a request stands in its flow: when it began to wait, and its number in order of arrival."""

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class Flow(Generic[Item]):
    """One tenant's queue in one pool.

    Attributes:
        weight_milli: in thousandths, the class's weight included.
        counter: service per weight, in steps; `remainder` is what the last division left.
        service_tenths: service since the flow was first seen, in tenths of a weighted token.
        in_flight: how many of its items run.
        queue: what waits, the oldest first.
        parked: what waits but cannot be chosen; as far as fairness goes it is not there.
    """

    tenant_id: str
    weight_milli: int
    counter: int = 0
    remainder: int = 0
    service_tenths: int = 0
    in_flight: int = 0
    queue: IndexedHeap[Item, Place] = field(default_factory=IndexedHeap)
    parked: dict[Item, Place] = field(default_factory=dict)

    @property
    def queued(self) -> int:
        """How many items wait, parked ones included."""
        return len(self.queue) + len(self.parked)

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self.queued and not self.in_flight

    @property
    def head(self) -> Item:
        """The item that is next; there must be one."""
        first = self.queue.first()
        assert first is not None
        return first[1]

    @property
    def virtual_tenths(self) -> int:
        """The counter in tenths of a weighted token per unit of weight."""
        return self.counter // RESOLUTION

    def reweigh(self, weight_milli: int) -> None:
        """Gives the flow another weight, for what it is charged from now on."""
        if weight_milli != self.weight_milli:
            self.weight_milli, self.remainder = weight_milli, 0


class VirtualCounters(Generic[Item]):
    """The flows of one pool, and the order in which they are owed service."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow[Item]] = {}
        self._waiting: IndexedHeap[Flow[Item], int] = IndexedHeap()
        self._parked: dict[Flow[Item], None] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._last_left: Flow[Item] | None = None

    def busy(self) -> list[Flow[Item]]:
        """Returns the flows in which something waits or runs, in order of tenant."""
        return sorted((flow for flow in self._flows.values() if not flow.idle), key=lambda flow: flow.tenant_id)

    def flow(self, tenant_id: str, weight_milli: int) -> Flow[Item]:
        """Returns the tenant's flow with the weight as it is now, making the flow on first sight."""
        flow = self._flows.get(tenant_id)
        if flow is None:
            flow = self._flows[tenant_id] = Flow(tenant_id, weight_milli)
            self._note_idleness(flow)
        flow.reweigh(weight_milli)
        return flow

    def enqueue(self, flow: Flow[Item], item: Item, place: Place) -> None:
        """Adds a waiting item; a flow that begins to wait is lifted."""
        if not flow.queue:
            self._lift(flow)
            self._waiting.put(flow, flow.counter)
        flow.queue.put(item, place)
        self._note_idleness(flow)

    def dequeue(self, flow: Flow[Item], item: Item) -> None:
        """Takes a waiting item out, wherever it stands."""
        if flow.parked.pop(item, None) is None:
            self._take(flow, item)
        self._note_idleness(flow)

    def park(self, flow: Flow[Item], item: Item, place: Place) -> None:
        """Takes a waiting item out of its flow's way until `unpark`."""
        self._take(flow, item)
        flow.parked[item] = place
        self._parked[flow] = None

    def unpark(self) -> None:
        """Lets all parked items stand in their places again."""
        parked, self._parked = self._parked, {}
        for flow in parked:
            items, flow.parked = flow.parked, {}
            for item, place in items.items():
                self.enqueue(flow, item, place)

    def leads(self) -> dict[str, int]:
        """Returns by how many steps each flow is ahead of where one that begins to wait would be lifted to."""
        reference = self.neediest() or self._last_left
        floor = reference.counter if reference is not None else 0
        return {tenant_id: flow.counter - floor for tenant_id, flow in self._flows.items() if flow.counter > floor}

    def put_ahead(self, tenant_id: str, steps: int) -> None:
        """Adds to a flow's counter, of a tenant that may not have been seen yet."""
        flow = self._flows.get(tenant_id) or self.flow(tenant_id, 1000)
        flow.counter += steps
        self.put_back(flow)

    def neediest(self) -> Flow[Item] | None:
        """Returns the waiting flow with the smallest counter that is not set aside."""
        first = self._waiting.first()
        return None if first is None else first[1]

    def set_aside(self, flow: Flow[Item]) -> None:
        """Leaves a waiting flow out of the choice until it is put back."""
        self._waiting.discard(flow)

    def put_back(self, flow: Flow[Item]) -> None:
        """Ends `set_aside`."""
        if flow.queue:
            self._waiting.put(flow, flow.counter)

    def charge(self, flow: Flow[Item], tenths: int) -> None:
        """Adds service to a flow, in tenths of a weighted token; takes it back when negative."""
        flow.service_tenths += tenths
        # The counter is per unit of weight and the weight in thousandths, hence the factor.
        steps, flow.remainder = divmod(tenths * 1000 * RESOLUTION + flow.remainder, flow.weight_milli)
        flow.counter += steps
        if flow in self._waiting:
            self._waiting.put(flow, flow.counter)

    def begin(self, flow: Flow[Item]) -> None:
        """Notes that one more of the flow's items runs."""
        flow.in_flight += 1
        self._note_idleness(flow)

    def end(self, flow: Flow[Item]) -> None:
        """Notes that one of the flow's running items has ended."""
        flow.in_flight -= 1
        self._note_idleness(flow)

    def _take(self, flow: Flow[Item], item: Item) -> None:
        flow.queue.discard(item)
        if not flow.queue:
            self._waiting.discard(flow)
            self._last_left = flow

    def _lift(self, flow: Flow[Item]) -> None:
        reference = self.neediest() or self._last_left
        if reference is not None and flow.counter < reference.counter:
            flow.counter, flow.remainder = reference.counter, 0

    def _note_idleness(self, flow: Flow[Item]) -> None:
        if not flow.idle:
            self._idle.pop(flow.tenant_id, None)
            return
        self._idle[flow.tenant_id] = None
        self._idle.move_to_end(flow.tenant_id)
        if len(self._idle) > MAX_IDLE_FLOWS:
            forgotten, _ = self._idle.popitem(last=False)
            del self._flows[forgotten]
