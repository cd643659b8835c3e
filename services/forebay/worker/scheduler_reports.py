"""The port to the scheduler: what the worker tells it at once. What it tells it regularly, the link asks for itself.

While no session is open nobody listens, and nothing is kept: the next session begins with all that the worker holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.usage import Ending


@dataclass(frozen=True, slots=True)
class Departure:
    """An attempt has ended and its room is free.

    Attributes:
        generated_tokens: by this attempt.
        cached_tokens: of its prompt, from the prefix cache.
        ending: why; None for a payload that never reached the engine.
        scheduled: whether an engine step was spent on it.
    """

    id: AttemptId
    generated_tokens: int
    cached_tokens: int
    ending: Ending | None
    scheduled: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt has come; `generated_tokens` are its own."""

    id: AttemptId
    generated_tokens: int
    prefilled: bool


@dataclass(frozen=True, slots=True)
class Holding:
    """What the worker holds for one attempt: its batch entry (not started), or the attempt itself."""

    id: AttemptId
    tenant_id: str
    kv_tokens: int
    generated_tokens: int
    started: bool


class SchedulerReports(Protocol):
    """The scheduler, seen from the worker. Nothing here waits or fails."""

    def departed(self, departure: Departure) -> None:
        """Says that an attempt has ended."""
        ...

    def expired(self, id: AttemptId) -> None:
        """Says that a batch entry's payload did not come and its room is free."""
        ...

    def draining(self) -> None:
        """Says that the worker takes no more."""
        ...

    def health(self) -> None:
        """Says whether the worker can run what it is given, if that has changed.

        To be called when a payload was turned away: its router asks for another grant at once, and has a few attempts only.
        """
        ...


class Unheard:
    """A `SchedulerReports` to which nobody listens."""

    def departed(self, departure: Departure) -> None:
        """Forgets it."""

    def expired(self, id: AttemptId) -> None:
        """Forgets it."""

    def draining(self) -> None:
        """Forgets it."""

    def health(self) -> None:
        """Forgets it."""
