"""The event log: usage events on their way to the ledger.

A port, because where it keeps them decides what a crash can lose. Its in-memory twin loses what was not acknowledged when the
process dies; a log on disk stands here in its place without a change elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from forebay.worker.domain.usage import UsageEvent


class EventLog(Protocol):
    """Events in the order they were appended, until they are acknowledged. Bounded."""

    @property
    def room(self) -> int:
        """How many more events it takes; whoever starts an attempt makes sure first that its event will fit."""
        ...

    def append(self, event: UsageEvent) -> None:
        """Takes an event.

        Raises:
            OverflowError: there is no room.
        """
        ...

    def __len__(self) -> int:
        """How many events are not acknowledged."""
        ...

    def unacknowledged(self, skip: int = 0) -> Iterator[UsageEvent]:
        """Returns them, oldest first, without the first `skip`; not to be used across an append."""
        ...

    def acknowledge(self, count: int) -> None:
        """Forgets the `count` oldest."""
        ...

    def listen(self, appended: Callable[[], None]) -> None:
        """Has `appended` called whenever there is something new to send; one listener."""
        ...


class MemoryEventLog:
    """An `EventLog` in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[UsageEvent] = deque()
        self._appended: Callable[[], None] = lambda: None

    @property
    def room(self) -> int:
        """How many more events it takes."""
        return self._limit - len(self._events)

    def append(self, event: UsageEvent) -> None:
        """Takes an event, or raises OverflowError."""
        if self.room <= 0:
            raise OverflowError(f"the event log holds {self._limit} events, its bound")
        self._events.append(event)
        self._appended()

    def __len__(self) -> int:
        """How many events are not acknowledged."""
        return len(self._events)

    def unacknowledged(self, skip: int = 0) -> Iterator[UsageEvent]:
        """Returns them, oldest first, without the first `skip`."""
        return islice(self._events, skip, None)

    def acknowledge(self, count: int) -> None:
        """Forgets the `count` oldest."""
        for _ in range(min(count, len(self._events))):
            self._events.popleft()

    def listen(self, appended: Callable[[], None]) -> None:
        """Has `appended` called after each append."""
        self._appended = appended
