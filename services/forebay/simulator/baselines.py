"""Schedulers to compare with. Each is an order, who is next, and a gate, whether the engine gets one more.

The orders, with their sources:
- `Fcfs`: first come, first served, as vLLM and most servers do it.
- `RoundRobin`: one request of each client in turn.
- `InputDrr`: deficit round robin (Shreedhar and Varghese, SIGCOMM '95) over tokens of prompts; completions are free.
- `LeastServed`: least attained service: the client that has got least so far, whenever it came.
- `Vtc`: virtual token counters (Sheng et al., OSDI '24): the same, but who comes back from idleness starts
  at the least counter of those who wait.

The gates: `PushAll` sends all on at once, so that the order decides little and the engine queues; `InFlight` bounds the number on
the engine; `EngineWaiting` sends on while the engine has next to nothing waiting, which is what a scheduler inside the
engine, as in the VTC paper, comes down to from outside.
"""

from collections import defaultdict, deque
from typing import Protocol

from forebay.simulator.dispatcher import Ask, Orders, Report, Start
from forebay.simulator.loop import INPUT_WEIGHT, OUTPUT_WEIGHT

QUANTUM = 512
"""Prompt tokens that a turn of deficit round robin is good for."""


class Order(Protocol):
    """Who of those who wait is next."""

    def add(self, ask: Ask) -> None:
        """Takes one more that waits."""
        ...

    def take(self) -> Ask | None:
        """Takes out the one that is next; None when nobody waits."""
        ...

    def charge(self, client: str, tokens: int) -> None:
        """Notes weighted tokens of service that a client has got."""
        ...


class Fcfs:
    """First come, first served."""

    def __init__(self) -> None:
        self._queue: deque[Ask] = deque()

    def add(self, ask: Ask) -> None:
        """See `Order`."""
        self._queue.append(ask)

    def take(self) -> Ask | None:
        """See `Order`."""
        return self._queue.popleft() if self._queue else None

    def charge(self, client: str, tokens: int) -> None:
        """Service changes nothing."""


class RoundRobin:
    """A request of each client in turn; who comes anew goes last."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Ask]] = {}

    def add(self, ask: Ask) -> None:
        """See `Order`."""
        self._queues.setdefault(ask.client, deque()).append(ask)

    def take(self) -> Ask | None:
        """See `Order`."""
        if not self._queues:
            return None
        client = next(iter(self._queues))
        queue = self._queues.pop(client)
        ask = queue.popleft()
        if queue:
            self._queues[client] = queue
        return ask

    def charge(self, client: str, tokens: int) -> None:
        """Service changes nothing."""


class InputDrr:
    """Deficit round robin over tokens of prompts."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Ask]] = {}
        self._deficit: dict[str, int] = {}
        self._in_turn = ""  # who has had this turn's quantum

    def add(self, ask: Ask) -> None:
        """See `Order`."""
        if ask.client not in self._queues:
            self._queues[ask.client] = deque()
            self._deficit[ask.client] = 0
        self._queues[ask.client].append(ask)

    def take(self) -> Ask | None:
        """See `Order`."""
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            if self._in_turn != client:
                self._in_turn = client
                self._deficit[client] += QUANTUM
            if queue[0].prompt <= self._deficit[client]:
                ask = queue.popleft()
                self._deficit[client] -= ask.prompt
                if not queue:
                    del self._queues[client], self._deficit[client]
                    self._in_turn = ""
                return ask
            self._queues[client] = self._queues.pop(client)  # to the end of the round
            self._in_turn = ""
        return None

    def charge(self, client: str, tokens: int) -> None:
        """Service changes nothing."""


class LeastServed:
    """The client that has got least since the start."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Ask]] = {}
        self._counters: defaultdict[str, int] = defaultdict(int)

    def add(self, ask: Ask) -> None:
        """See `Order`."""
        self._queues.setdefault(ask.client, deque()).append(ask)

    def take(self) -> Ask | None:
        """See `Order`."""
        if not self._queues:
            return None
        client = min(self._queues, key=self._counters.__getitem__)
        queue = self._queues[client]
        ask = queue.popleft()
        if not queue:
            del self._queues[client]
        return ask

    def charge(self, client: str, tokens: int) -> None:
        """See `Order`."""
        self._counters[client] += tokens


class Vtc(LeastServed):
    """Virtual token counters: idleness earns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._last_left = ""

    def add(self, ask: Ask) -> None:
        """See `Order`."""
        if ask.client not in self._queues:
            others = self._queues or [self._last_left]
            least = min(self._counters[client] for client in others)
            self._counters[ask.client] = max(self._counters[ask.client], least)
        super().add(ask)

    def take(self) -> Ask | None:
        """See `Order`."""
        ask = super().take()
        if ask is not None and not self._queues:
            self._last_left = ask.client
        return ask


class Gate(Protocol):
    """Whether a worker gets one more."""

    def open(self, sent: int, report: Report, ended: int) -> bool:
        """Decides from how many the worker was sent, its last report, and how many have ended there."""
        ...


class PushAll:
    """Everything goes down as it comes."""

    def open(self, sent: int, report: Report, ended: int) -> bool:
        """See `Gate`."""
        return True


class InFlight:
    """At most so many are on the worker at a time."""

    def __init__(self, most: int) -> None:
        self._most = most

    def open(self, sent: int, report: Report, ended: int) -> bool:
        """See `Gate`."""
        return sent - ended < self._most


class EngineWaiting:
    """The engine has at most so many waiting, those on their way to it among them."""

    def __init__(self, most: int) -> None:
        self._most = most

    def open(self, sent: int, report: Report, ended: int) -> bool:
        """See `Gate`."""
        return report.waiting + sent - report.received < self._most


class Baseline:
    """An order behind a gate; the worker with the fewest requests is next."""

    def __init__(self, order: Order, gate: Gate, workers: int = 1) -> None:
        self._order = order
        self._gate = gate
        self._reports = [Report(index) for index in range(workers)]
        self._sent = [0] * workers
        self._ended = [0] * workers
        self._waiting = 0
        self._running: dict[int, tuple[str, int]] = {}

    def submit(self, ask: Ask, now: float) -> None:
        """See `Dispatcher`."""
        self._order.add(ask)
        self._waiting += 1

    def reported(self, report: Report, now: float) -> None:
        """See `Dispatcher`."""
        self._reports[report.worker] = report
        for id, generated in report.progress:
            client, known = self._running[id]
            self._order.charge(client, OUTPUT_WEIGHT * (generated - known))
            self._running[id] = client, generated
        for id, _ in report.finished:
            del self._running[id]
            self._ended[report.worker] += 1

    def tick(self, now: float) -> Orders:
        """See `Dispatcher`."""
        orders = Orders()
        while self._waiting:
            workers = [index for index in range(len(self._sent)) if self._open(index)]
            if not workers:
                break
            ask = self._order.take()
            assert ask is not None
            worker = min(workers, key=lambda index: self._sent[index] - self._ended[index])
            self._order.charge(ask.client, INPUT_WEIGHT * ask.prompt)
            self._waiting -= 1
            self._sent[worker] += 1
            self._running[ask.id] = ask.client, 0
            orders.starts.append(Start(ask.id, worker))
        return orders

    def _open(self, worker: int) -> bool:
        return self._gate.open(self._sent[worker], self._reports[worker], self._ended[worker])
