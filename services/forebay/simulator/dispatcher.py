"""What decides who runs where and when, seen from the loop: the product's scheduler or a baseline.

Whoever decides knows of a request what a scheduler can know: its client, its prompt's length and the most that it asks for. What
happened on workers it hears later, in reports.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as a scheduler sees it; `max_tokens` is the most that it may generate."""

    id: int
    client: str
    prompt: int
    max_tokens: int


@dataclass(slots=True)
class Report:
    """What one worker says after a step.

    Attributes:
        worker: its index.
        progress: (id, tokens generated so far) of each request that got a token and goes on.
        finished: (id, tokens generated) of each that has ended.
        handed_over: (id, tokens generated) of each that was evicted: it is to be started again, and goes on from there.
        received: requests that the worker has been sent so far, those that have ended among them.
        running, waiting, kv_tokens_used, preemptions: the engine's, the last since the start.
    """

    worker: int
    progress: list[tuple[int, int]] = field(default_factory=list)
    finished: list[tuple[int, int]] = field(default_factory=list)
    handed_over: list[tuple[int, int]] = field(default_factory=list)
    received: int = 0
    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Send a request to a worker; a lower priority goes first there."""

    id: int
    worker: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Evict:
    """Have a worker hand a request over."""

    id: int
    worker: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request will not run, for a reason with a stable name."""

    id: int
    reason: str


@dataclass(slots=True)
class Orders:
    """What a tick decided."""

    starts: list[Start] = field(default_factory=list)
    evictions: list[Evict] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class Dispatcher(Protocol):
    """Decides. The time never goes back from call to call, and each moment ends with one tick."""

    def submit(self, ask: Ask, now: float) -> None:
        """Takes a request that waits from now on."""
        ...

    def reported(self, report: Report, now: float) -> None:
        """Hears from a worker."""
        ...

    def tick(self, now: float) -> Orders:
        """Decides all that is to be decided now."""
        ...
