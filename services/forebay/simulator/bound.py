"""Law 4 watched from outside: how far any two clients drift apart while both wait, whoever decides.

The law bounds |W_f/w_f - W_g/w_g| over every interval in which both f and g have something to dispatch, W being service in that
interval and w weights. Over all intervals of one such stretch the largest is the spread, highest minus lowest, of the running
difference, so one low and one high for each pair will do. A prompt is service when it is dispatched, a generated token when it is
reported: these are the moments in which whoever decides can know of it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from forebay.simulator.dispatcher import Ask, Dispatcher, Orders, Report
from forebay.simulator.engine import EngineShape
from forebay.simulator.loop import INPUT_WEIGHT, OUTPUT_WEIGHT


def bound(shape: EngineShape, workers: int, longest_prompt: int) -> float:
    """Returns law 4's bound for two clients of weight 1, in weighted tokens; for others it is divided by the smaller weight.

    The logical tokens in flight are at most what the KV of all workers holds, and what is not reported yet is among them.
    """
    return 2.0 * max(INPUT_WEIGHT * longest_prompt, OUTPUT_WEIGHT * shape.kv_tokens * workers)


class Watched:
    """A `Dispatcher` around another that keeps account of it.

    Attributes:
        largest: the largest gap seen, times the smaller weight of its pair, so that it compares with `bound`.
    """

    def __init__(self, dispatcher: Dispatcher, weights: Mapping[str, float] | None = None) -> None:
        self.largest = 0.0
        self._dispatcher = dispatcher
        self._weights = weights or {}
        self._virtual: defaultdict[str, float] = defaultdict(float)
        self._waiting: Counter[str] = Counter()
        self._client: dict[int, str] = {}
        self._prompt: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._spread: dict[tuple[str, str], tuple[float, float]] = {}

    def submit(self, ask: Ask, now: float) -> None:
        """See `Dispatcher`."""
        self._client[ask.id], self._prompt[ask.id] = ask.client, ask.prompt
        self._wait(ask.client)
        self._dispatcher.submit(ask, now)

    def reported(self, report: Report, now: float) -> None:
        """See `Dispatcher`."""
        tokens: Counter[str] = Counter()
        for id, generated in (*report.progress, *report.finished, *report.handed_over):
            tokens[self._client[id]] += OUTPUT_WEIGHT * (generated - self._known.get(id, 0))
            self._known[id] = generated
        for client, count in tokens.items():
            self._virtual[client] += count / self._weights.get(client, 1.0)
        self._look()
        for id, _ in report.handed_over:
            self._wait(self._client[id])
        self._dispatcher.reported(report, now)

    def tick(self, now: float) -> Orders:
        """See `Dispatcher`."""
        orders = self._dispatcher.tick(now)
        for start in orders.starts:
            client = self._client[start.id]
            self._virtual[client] += INPUT_WEIGHT * self._prompt.pop(start.id, 0) / self._weights.get(client, 1.0)
            self._look()
            self._leave(client)
        for refusal in orders.refusals:
            self._leave(self._client[refusal.id])
        return orders

    def _wait(self, client: str) -> None:
        self._waiting[client] += 1
        if self._waiting[client] == 1:
            for other in self._waiting:
                if other != client:
                    gap = self._gap(pair := _pair(client, other))
                    self._spread[pair] = gap, gap

    def _leave(self, client: str) -> None:
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
            self._spread = {pair: spread for pair, spread in self._spread.items() if client not in pair}

    def _look(self) -> None:
        for pair, (low, high) in self._spread.items():
            gap = self._gap(pair)
            if not low <= gap <= high:
                low, high = self._spread[pair] = min(low, gap), max(high, gap)
                weight = min(self._weights.get(client, 1.0) for client in pair)
                self.largest = max(self.largest, (high - low) * weight)

    def _gap(self, pair: tuple[str, str]) -> float:
        return self._virtual[pair[0]] - self._virtual[pair[1]]


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)
