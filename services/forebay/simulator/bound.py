"""Law 4 watched from outside: how far any two siblings drift apart while both wait, whoever decides.

The law (docs/fairness.md) bounds |W_f/w_f - W_g/w_g| for two classes, two tenants of a class or two keys of a tenant over every
interval in which both f and g have something to dispatch, W being service in that interval and w weights. Over all intervals of
one such stretch the largest is the spread, highest minus lowest, of the running difference, so one low and one high for each
pair will do. A prompt is service when it is dispatched, a generated token when it is reported: these are the moments in which
whoever decides can know of it, so nothing is unreported (R = 0).

The bound itself is 2 · max(longest prompt, 2 · M) over the smaller weight. M is the largest number of tokens in flight at a
time, each request counted with all that it comes to: what is dispatched will be served, whatever is decided from then on.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from forebay.simulator.dispatcher import Ask, Dispatcher, Orders, Report
from forebay.simulator.loop import INPUT_WEIGHT, OUTPUT_WEIGHT

Way = tuple[tuple[str, float], ...]
"""Where a client stands: the name and the weight of each node from below the root down to it."""

Node = tuple[str, ...]
"""The names on the way to it."""


class Watched:
    """A `Dispatcher` around another that keeps account of it.

    Args:
        dispatcher: who decides.
        ways: of clients; those that are not named are siblings at the root and have weight 1.

    Attributes:
        largest: the largest gap seen, times the smaller weight of its pair, so that it compares with `bound`.
        longest_prompt: of those dispatched, in tokens.
    """

    def __init__(self, dispatcher: Dispatcher, ways: Mapping[str, Way] | None = None) -> None:
        self.largest = 0.0
        self.longest_prompt = 0
        self._dispatcher = dispatcher
        self._ways = ways or {}
        self._weights: dict[Node, float] = {}
        self._nodes: dict[str, list[Node]] = {}
        self._virtual: defaultdict[Node, float] = defaultdict(float)
        self._waiting: Counter[Node] = Counter()
        self._asks: dict[int, Ask] = {}
        self._known: dict[int, int] = {}
        self._flights: list[tuple[int, int]] = []  # (id, +1) at each dispatch, (id, -1) at its end
        self._spread: dict[tuple[Node, Node], tuple[float, float]] = {}

    @property
    def most_in_flight(self) -> int:
        """M so far, in tokens."""
        tokens = most = 0
        for id, sign in self._flights:
            tokens += sign * (self._asks[id].prompt + self._known[id])
            most = max(most, tokens)
        return most

    @property
    def bound(self) -> float:
        """Law 4's bound for two clients of weight 1, in weighted tokens."""
        return 2.0 * max(INPUT_WEIGHT * self.longest_prompt, OUTPUT_WEIGHT * self.most_in_flight)

    @property
    def share_of_bound(self) -> float:
        """The largest gap as a share of the bound; above 1 is a violation."""
        return self.largest / self.bound if self.bound else 0.0

    def submit(self, ask: Ask, now: float) -> None:
        """See `Dispatcher`."""
        self._asks[ask.id] = ask
        self._wait(ask.client)
        self._dispatcher.submit(ask, now)

    def reported(self, report: Report, now: float) -> None:
        """See `Dispatcher`."""
        tokens: Counter[str] = Counter()
        for id, generated in (*report.progress, *report.finished, *report.handed_over):
            tokens[self._asks[id].client] += generated - self._known[id]
            self._known[id] = generated
        for client, count in tokens.items():
            self._charge(client, OUTPUT_WEIGHT * count)
        self._look()
        self._flights += [(id, -1) for id, _ in (*report.finished, *report.handed_over)]
        for id, _ in report.handed_over:
            self._wait(self._asks[id].client)
        self._dispatcher.reported(report, now)

    def tick(self, now: float) -> Orders:
        """See `Dispatcher`."""
        orders = self._dispatcher.tick(now)
        for start in orders.starts:
            ask = self._asks[start.id]
            if start.id not in self._known:  # else it goes on, and its prompt was counted
                self._known[start.id] = 0
                self._charge(ask.client, INPUT_WEIGHT * ask.prompt)
                self.longest_prompt = max(self.longest_prompt, ask.prompt)
            self._flights.append((start.id, 1))
            self._look()
            self._leave(ask.client)
        for refusal in orders.refusals:
            self._leave(self._asks[refusal.id].client)
        return orders

    def _above(self, client: str) -> list[Node]:
        """Returns the nodes on a client's way, its own the last."""
        nodes = self._nodes.get(client)
        if nodes is None:
            way = self._ways.get(client, ((client, 1.0),))
            nodes = self._nodes[client] = [tuple(name for name, _ in way[: depth + 1]) for depth in range(len(way))]
            self._weights |= {node: weight for node, (_, weight) in zip(nodes, way, strict=True)}
        return nodes

    def _charge(self, client: str, tokens: int) -> None:
        for node in self._above(client):
            self._virtual[node] += tokens / self._weights[node]

    def _wait(self, client: str) -> None:
        for node in self._above(client):
            self._waiting[node] += 1
            if self._waiting[node] == 1:
                for other in self._waiting:
                    if other != node and other[:-1] == node[:-1]:
                        gap = self._gap(pair := _pair(node, other))
                        self._spread[pair] = gap, gap

    def _leave(self, client: str) -> None:
        for node in self._above(client):
            self._waiting[node] -= 1
            if not self._waiting[node]:
                del self._waiting[node]
                self._spread = {pair: spread for pair, spread in self._spread.items() if node not in pair}

    def _look(self) -> None:
        for pair, (low, high) in self._spread.items():
            gap = self._gap(pair)
            if not low <= gap <= high:
                low, high = self._spread[pair] = min(low, gap), max(high, gap)
                weight = min(self._weights[node] for node in pair)
                self.largest = max(self.largest, (high - low) * weight)

    def _gap(self, pair: tuple[Node, Node]) -> float:
        return self._virtual[pair[0]] - self._virtual[pair[1]]


def _pair(one: Node, other: Node) -> tuple[Node, Node]:
    return (one, other) if one < other else (other, one)
