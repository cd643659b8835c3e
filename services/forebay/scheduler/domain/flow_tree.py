"""The tree of flows: who is owed the next service.

Source. Virtual token counters are from Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each client has
a counter of the service it has received, and the next request is taken from the client with the smallest. Service is tokens,
not requests and not turns, since a turn costs whatever its sender likes. The weighted form divides service by weight, as
weighted fair queueing does (Demers, Keshav and Shenker 1989); the lift of a returning client plays the part that the system's
virtual time plays there; and the tree is that of hierarchical fair queueing (Bennett and Zhang 1996): class, tenant, key.

How service is counted. A request is charged twice: on dispatch for its input, which is known then, and for each generated
token as its worker reports it, which is not known before. In tenths of a weighted token an input token costs 10, one
that came from the prefix cache 1, a generated one 20. Whether input was cached is known only at the end, so dispatch charges
it in full and the departure takes the difference back. A continuation of tokens already delivered is charged no input.
A charge goes to the flow and to each node above it, at each by that node's weight among its siblings.

The choice. From the root down, the waiting child with the smallest counter, until a flow is reached. So a tenant's share is its
class's share times its weight over the weights of its class, among those that wait; and what one does not use, its
siblings use before anybody else does.

Arithmetic. A counter is service divided by weight. Floats lose the small differences that fairness is about once the sums
are large, and exact fractions grow a denominator with every weight that a lift has met. So a counter is an integer number of
1/RESOLUTION steps, and the remainder of each division is carried to the next charge: after any number of charges the counter
is exactly floor(service x RESOLUTION / weight) above where its flow was last lifted to. One step is below a millionth of a token.

The lift. A node that begins to wait again is lifted to just above the smallest counter among its waiting siblings; when none
waits, to that of the sibling that stopped waiting last. Idle time earns nothing: without it a tenant that slept for an
hour would be owed an hour. Lifting to the largest counter, or to the average, would punish those who come and go. The level
never falls, and is no lower than the counter of whoever was last the neediest of those that could be served: it is the
virtual time of start-time fair queueing (Goyal, Vin and Cheng 1996). Otherwise one that is passed over, because its request
fits nowhere or its tenant is capped, would give whoever comes meanwhile its own credit against all others.

Invariants.
1. A node is in its parent's heap exactly while something in its subtree waits, save for flows set aside during one draw.
2. Counters fall only by what the end of an attempt takes back, which is at most what its dispatch charged.
3. A flow is chosen only while no waiting sibling of it, or of a node above it, has a smaller counter, or those that have were
   passed over: because their heads fit nowhere, or for a prefix hit within `slack` of the smallest. So of two siblings that
   wait throughout, one gets ahead of the other by no more than the charges of the requests that it then has in flight: law
   4, whose proof is in docs/fairness.md.

Cost. Choosing is O(depth); charging, joining and leaving are O(depth x log n) for n waiting siblings; the depth is three.

Rejected. Round robin by turns and input-only deficit round robin: who asks for long answers wins. Least attained service
without the lift: idleness is credit. Charging the expected output on dispatch: it narrows the bound when the guess is good,
and is left until a benchmark wants it. Strict bands between classes: a flood of gold would starve bronze.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from forebay.scheduler.domain.flow import RESOLUTION, Flow, Node, Place

MAX_IDLE_FLOWS = 10_000
"""Idle flows remembered in each tree. The longest idle is forgotten first: the lift would raise it in any case."""

DEPTH = 3
"""Class, tenant, key."""

Step = tuple[str, int]
"""One step of the way from the root to a flow: the node's name, and its weight in thousandths."""

Item = TypeVar("Item")


class FlowTree(Generic[Item]):
    """The flows of one pool, and the order in which they are owed service.

    Attributes:
        root: the node above the classes.
        parked: the flows in which something is parked.
    """

    def __init__(self) -> None:
        self.root: Node[Item] = Node("", None)
        self._flows: dict[tuple[str, ...], Flow[Item]] = {}
        self.parked: dict[Flow[Item], None] = {}
        self._idle: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def flows(self) -> list[Flow[Item]]:
        """Returns the flows in which something waits or runs, in order of path."""
        return [self._flows[path] for path in sorted(self._flows) if not self._flows[path].idle]

    def flow(self, *steps: Step) -> Flow[Item]:
        """Returns the flow at the end of the way, with the weights as they are now, making it on first sight."""
        path = tuple(name for name, _ in steps)
        flow = self._flows.get(path)
        if flow is None:
            node = self.root
            for name in path:
                node = node.children.get(name) or self._make(node, name)
            flow = self._flows[path]
        for node, (_, weight_milli) in zip(self._up(flow), reversed(steps), strict=True):
            node.reweigh(weight_milli)
        return flow

    def enqueue(self, flow: Flow[Item], item: Item, place: Place) -> None:
        """Adds a waiting item; a flow that begins to wait is lifted, and so is each node above it that does."""
        if not flow.queue:
            self._join(flow, lift=True)
        flow.queue.put(item, place)
        self._note_business(flow)

    def dequeue(self, flow: Flow[Item], item: Item) -> None:
        """Takes a waiting item out, wherever it stands."""
        if flow.parked.pop(item, None) is None:
            self._take(flow, item)
        elif not flow.parked:
            del self.parked[flow]
        self._note_business(flow)

    def park(self, flow: Flow[Item], item: Item, place: Place) -> None:
        """Takes a waiting item out of its flow's way until `unpark`."""
        self._take(flow, item)
        flow.parked[item] = place
        self.parked[flow] = None

    def unpark(self) -> None:
        """Lets all parked items stand in their places again."""
        parked, self.parked = self.parked, {}
        for flow in parked:
            items, flow.parked = flow.parked, {}
            for item, place in items.items():
                self.enqueue(flow, item, place)

    def unpark_one(self, flow: Flow[Item], item: Item) -> None:
        """Lets one item stand in its place again, if it is parked."""
        if (place := flow.parked.pop(item, None)) is None:
            return
        if not flow.parked:
            del self.parked[flow]
        self.enqueue(flow, item, place)

    def neediest(self) -> Flow[Item] | None:
        """Returns the waiting flow that is owed most, of those not set aside."""
        return _neediest_below(self.root)

    def others_wait(self, tenant: Node[Item]) -> bool:
        """Whether any tenant waits besides this one, which does; those set aside are not counted."""
        assert tenant.parent is not None
        return len(self.root.waiting) > 1 or len(tenant.parent.waiting) > 1

    def near(self, most: int, slack_tenths: int) -> Iterator[Flow[Item]]:
        """Yields the neediest flow of each of up to `most` tenants, of the neediest class, the neediest first.

        Only tenants that `slack_tenths` of service would not have put behind the neediest; the tree must not change meanwhile.
        """
        first = self.root.waiting.first()
        if first is None:
            return
        least: int | None = None
        for counter, tenant in first[1].waiting.ascending():
            least = counter if least is None else least
            if most == 0 or (counter - least) * tenant.weight_milli > slack_tenths * 1000 * RESOLUTION:
                return
            flow = _neediest_below(tenant)
            assert flow is not None
            yield flow
            most -= 1

    def set_aside(self, node: Node[Item]) -> None:
        """Leaves a waiting flow, or all of a tenant, out of the choice until it is put back; it keeps waiting meanwhile."""
        self._leave(node)

    def put_back(self, node: Node[Item]) -> None:
        """Ends `set_aside`."""
        self._join(node, lift=False)

    def start(self, flow: Flow[Item], item: Item, kv_tokens: int, tenths: int) -> None:
        """Has a waiting item run: takes it out, notes what `begin` does, and charges its input.

        Who begins to wait from now on gets no credit against the flow, at any level.
        """
        flow.take(item)
        waits = len(flow.queue) > 0
        node: Node[Item] = flow
        while (parent := node.parent) is not None:
            parent.virtual_time = _level(parent)
            node.in_flight += 1
            node.kv_tokens += kv_tokens
            node.charge(tenths)
            if waits:
                parent.waiting.put(node, node.counter)
            else:
                parent.waiting.discard(node)
                parent.last_left = node
                waits = len(parent.waiting) > 0
            node = parent
        node.in_flight += 1
        node.kv_tokens += kv_tokens
        node.service_tenths += tenths

    def charge(self, flow: Flow[Item], tenths: int) -> None:
        """Adds service to a flow and all above it, in tenths of a weighted token; takes it back when negative."""
        node: Node[Item] = flow
        while (parent := node.parent) is not None:
            node.charge(tenths)
            parent.waiting.move(node, node.counter)
            node = parent
        node.service_tenths += tenths

    def begin(self, flow: Flow[Item], kv_tokens: int) -> None:
        """Notes that one more of the flow's items runs, and the KV tokens that it is expected to come to."""
        for node in (*self._up(flow), self.root):
            node.in_flight += 1
            node.kv_tokens += kv_tokens
        self._note_business(flow)

    def end(self, flow: Flow[Item], kv_tokens: int) -> None:
        """Notes that one of the flow's running items has ended."""
        for node in (*self._up(flow), self.root):
            node.in_flight -= 1
            node.kv_tokens -= kv_tokens
        self._note_business(flow)

    def tag(self, flow: Flow[Item]) -> int:
        """Returns the flow's virtual time on the scale of the root, in tenths of a weighted token per unit of class weight.

        It is its class's counter, and the service by which it and its tenant are ahead of their neediest waiting sibling.
        Within a pool it orders requests of all flows as they are owed service, over time, too.
        """
        ahead = 0
        node: Node[Item] = flow
        while (parent := node.parent) is not None and parent.parent is not None:
            first = parent.waiting.first()
            least = node.counter if first is None else min(first[0], node.counter)
            ahead += (node.counter - least) * node.weight_milli
            node = parent
        return (node.counter + ahead // node.weight_milli) // RESOLUTION

    def leads(self) -> dict[tuple[str, ...], int]:
        """Returns, by path, by how many steps each node is ahead of where a sibling that begins to wait would be lifted to."""
        found: dict[tuple[str, ...], int] = {}
        above = [self.root]
        while above:
            node = above.pop()
            level = _level(node)
            for child in node.children.values():
                if child.counter > level:
                    found[child.path] = child.counter - level
                # An only child that was the last to wait is ahead of nobody, and most nodes have no other.
                if len(child.children) > 1 or (child.children and child.last_left not in child.children.values()):
                    above.append(child)
        return found

    def put_ahead(self, path: tuple[str, ...], steps: int) -> None:
        """Adds to the counter of a node that may not have been seen yet."""
        node = self.root
        for name in path:
            node = node.children.get(name) or self._make(node, name)
        if len(path) == DEPTH - 1 and not node.children:
            self._make(node, "")  # nodes are forgotten by their flows
        node.counter += steps
        if node.parent is not None and node in node.parent.waiting:
            node.parent.waiting.put(node, node.counter)

    @staticmethod
    def _up(flow: Flow[Item]) -> Iterator[Node[Item]]:
        node: Node[Item] = flow
        while node.parent is not None:
            yield node
            node = node.parent

    def _make(self, parent: Node[Item], name: str) -> Node[Item]:
        path = (*parent.path, name)
        if len(path) < DEPTH:
            node = parent.children[name] = Node(name, parent)
            return node
        flow = parent.children[name] = self._flows[path] = Flow(name, parent)
        self._idle[path] = None
        self._forget_longest_idle()
        return flow

    def _join(self, node: Node[Item], *, lift: bool) -> None:
        while (parent := node.parent) is not None and node not in parent.waiting:
            if lift:
                # One step above those that wait: one whose head does not fit yet stays the neediest.
                parent.virtual_time = _level(parent)
                level = parent.virtual_time + (1 if parent.waiting else 0)
                if node.counter < level:
                    node.counter, node.remainder = level, 0
            parent.waiting.put(node, node.counter)
            node = parent

    def _leave(self, node: Node[Item]) -> None:
        while (parent := node.parent) is not None:
            parent.waiting.discard(node)
            parent.last_left = node
            if parent.waiting:
                return
            node = parent

    def _take(self, flow: Flow[Item], item: Item) -> None:
        flow.take(item)
        if not flow.queue:
            self._leave(flow)

    def _note_business(self, flow: Flow[Item]) -> None:
        node: Node[Item] = flow
        busy = not flow.idle
        while (parent := node.parent) is not None and node.busy != busy:
            node.become(busy=busy)
            node, busy = parent, parent.busy_weight > 0
        if not flow.idle:
            self._idle.pop(flow.path, None)
        else:
            self._idle[flow.path] = None
            self._idle.move_to_end(flow.path)
            self._forget_longest_idle()

    def _forget_longest_idle(self) -> None:
        if len(self._idle) <= MAX_IDLE_FLOWS:
            return
        path, _ = self._idle.popitem(last=False)
        node: Node[Item] = self._flows.pop(path)
        while (parent := node.parent) is not None and not node.children:
            del parent.children[node.name]  # as `last_left` it still tells the level
            node = parent


def _level(parent: Node[Item]) -> int:
    """Returns what the virtual time has come to: the smallest counter that waits, or that of the last that did."""
    level = parent.virtual_time
    if (first := parent.waiting.first()) is not None:
        return first[0] if first[0] > level else level
    if parent.last_left is not None:
        return max(level, parent.last_left.counter)
    return level


def _neediest_below(node: Node[Item]) -> Flow[Item] | None:
    while (first := node.waiting.first()) is not None:
        node = first[1]
    return node if isinstance(node, Flow) else None
