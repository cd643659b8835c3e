"""The nodes of the tree of flows: what each was served, is owed, and has waiting. How they act together: flow_tree.py."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from forebay.scheduler.domain.indexed_heap import IndexedHeap

INPUT_TENTHS = 10
CACHED_TENTHS = 1
OUTPUT_TENTHS = 20

RESOLUTION = 1 << 20
"""Steps of a counter per tenth of a weighted token at weight 1."""

Place = tuple[float, int]
"""Where a request stands in its flow: the time by which it is to start, and its number in order of arrival."""

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class Node(Generic[Item]):
    """A class, a tenant or a key, and all below it.

    Attributes:
        path: the names from below the root down to this node.
        weight_milli: in thousandths, against its siblings.
        counter: service per weight, in steps; `remainder` is what the last division left.
        service_tenths: service since the node was first seen, in tenths of a weighted token.
        in_flight, kv_tokens: how many items of the subtree run, and the KV tokens that they are expected to come to.
        waiting: the children in whose subtrees something waits, by their counters.
        virtual_time: the counter to which a child that begins to wait is lifted at least; it never falls.
        last_left: the child that stopped waiting last.
        busy: whether anything in the subtree waits or runs.
        busy_weight: the sum of the weights of the children that are busy.
        owed, mark: service that the node was owed while it was busy, and its parent's `level` up to which that is counted.
        level, settled: service owed to each unit of the children's weight, and the node's own up to which that is counted.
    """

    name: str
    parent: "Node[Item] | None"
    weight_milli: int = 1000
    counter: int = 0
    remainder: int = 0
    service_tenths: int = 0
    in_flight: int = 0
    kv_tokens: int = 0
    children: "dict[str, Node[Item]]" = field(default_factory=dict)
    waiting: "IndexedHeap[Node[Item], int]" = field(default_factory=IndexedHeap)
    virtual_time: int = 0
    last_left: "Node[Item] | None" = None
    busy: bool = False
    busy_weight: int = 0
    owed: float = 0.0
    mark: float = 0.0
    level: float = 0.0
    settled: float = 0.0
    path: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.path = (*self.parent.path, self.name) if self.parent is not None else ()

    def charge(self, tenths: int) -> None:
        """Adds service, in tenths of a weighted token; takes it back when negative."""
        self.service_tenths += tenths
        # The counter is per unit of weight and the weight in thousandths, hence the factor.
        more, self.remainder = divmod(tenths * 1000 * RESOLUTION + self.remainder, self.weight_milli)
        self.counter += more

    @property
    def virtual_tenths(self) -> int:
        """The counter in tenths of a weighted token per unit of weight."""
        return self.counter // RESOLUTION

    @property
    def share(self) -> float:
        """The part of the pool that the node is owed among those that wait or run, 0 to 1; as if it were busy when it is not."""
        if self.parent is None:
            return 1.0
        siblings = self.parent.busy_weight + (0 if self.busy else self.weight_milli)
        return self.parent.share * self.weight_milli / siblings

    def reweigh(self, weight_milli: int) -> None:
        """Gives the node another weight, for what it is charged from now on."""
        if weight_milli != self.weight_milli:
            if self.busy and self.parent is not None:
                self.owed_tenths()
                self.parent.busy_weight += weight_milli - self.weight_milli
            self.weight_milli, self.remainder = weight_milli, 0

    def owed_tenths(self) -> float:
        """Returns the service that the node was owed: while busy its part, by weight, of what its parent was owed.

        A node that stops being busy had all that it asked for, so what it was owed beyond that is forgotten then.
        """
        if self.parent is None:
            return float(self.service_tenths)
        self.parent._spread()
        if self.busy:
            self.owed += self.weight_milli * (self.parent.level - self.mark)
        self.mark = self.parent.level
        return self.owed

    def become(self, *, busy: bool) -> None:
        """Notes that something in the subtree began to wait or run, or that nothing does any more."""
        assert self.parent is not None
        owed = self.owed_tenths()
        if not busy:
            self.owed = min(owed, float(self.service_tenths))
        self.busy = busy
        self.parent.busy_weight += self.weight_milli if busy else -self.weight_milli

    def _spread(self) -> None:
        owed = self.owed_tenths()
        if self.busy_weight:
            self.level += (owed - self.settled) / self.busy_weight
        self.settled = owed


@dataclass(slots=True, eq=False)
class Flow(Node[Item]):
    """A leaf: the requests of one key of one tenant.

    Attributes:
        queue: what waits, by place.
        parked: what waits but cannot be chosen; as far as fairness goes it is not there.
        dispatched_at, gap_s: when it was last served, and the smoothed time between two services while it waited.
    """

    queue: IndexedHeap[Item, Place] = field(default_factory=IndexedHeap)
    parked: dict[Item, Place] = field(default_factory=dict)
    dispatched_at: float | None = None
    gap_s: float | None = None

    @property
    def queued(self) -> int:
        """How many items wait, parked ones included."""
        return len(self.queue) + len(self.parked)

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self.queued and not self.in_flight

    def take(self, item: Item) -> None:
        """Takes an item out of the queue."""
        self.queue.discard(item)
        if not self.queue:
            self.dispatched_at = self.gap_s = None  # what is next to come has not waited since

    @property
    def head(self) -> Item:
        """The item that is next; there must be one."""
        first = self.queue.first()
        assert first is not None
        return first[1]

    @property
    def tenant(self) -> Node[Item]:
        """The node of its tenant."""
        assert self.parent is not None
        return self.parent
