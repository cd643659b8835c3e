"""The event log: usage events on their way to the ledger, from an attempt's start until metering has its event.

A port, because where it keeps them decides what a crash can lose. The in-memory twin loses everything; `spool_event_log`
keeps on a disk what was begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from forebay.errors import Code, MeshError
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.usage import UsageEvent

RETRY_AFTER_S = 1.0

# Hears once, on the event loop, that the start is kept (None), or why the attempt must not run.
Kept = Callable[[MeshError | None], None]


class EventLog(Protocol):
    """Attempts from `begin` to `finish`, and then their events until they are acknowledged. Bounded.

    What has begun has room for its end, so nothing but `begin` can be refused. Nothing waits.
    """

    @property
    def trouble(self) -> MeshError | None:
        """Why no attempt can begin now: UNAVAILABLE METERING_BEHIND, SPOOL_FULL or SPOOL_UNAVAILABLE; None if one can."""
        ...

    def begin(self, event: UsageEvent, kept: Kept) -> None:
        """Takes an attempt's start: the event that stands if nothing is heard of it again.

        `kept` may be called at once. Who hears an error, or does not want to wait for it, withdraws the attempt.
        """
        ...

    def withdraw(self, id: AttemptId) -> None:
        """Forgets an attempt that never reached the engine; nothing when it is unknown."""
        ...

    def checkpoint(self, events: Iterable[UsageEvent]) -> None:
        """Replaces what stands of attempts that have begun."""
        ...

    def finish(self, event: UsageEvent) -> None:
        """Takes the event of an attempt that has begun, which is to go to metering.

        Raises:
            KeyError: it has not begun, or has finished; the caller has a bug.
        """
        ...

    def __len__(self) -> int:
        """How many events of finished attempts are not acknowledged."""
        ...

    def unacknowledged(self, skip: int = 0) -> Iterator[UsageEvent]:
        """Returns those that can be sent, oldest first, without the first `skip`; not to be used across another call."""
        ...

    def acknowledge(self, count: int) -> None:
        """Forgets the `count` oldest."""
        ...

    def reject(self, index: int) -> None:
        """Keeps the event at `index`, which metering will never record, for an operator; it is still to be acknowledged."""
        ...

    def listen(self, appended: Callable[[], None]) -> None:
        """Has `appended` called whenever there is something new to send; one listener."""
        ...


class MemoryEventLog:
    """An `EventLog` in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: set[AttemptId] = set()
        self._events: deque[UsageEvent] = deque()
        self.rejected: deque[UsageEvent] = deque(maxlen=limit)
        self._appended: Callable[[], None] = lambda: None

    @property
    def trouble(self) -> MeshError | None:
        """Why no attempt can begin now."""
        return metering_behind() if len(self._begun) + len(self._events) >= self._limit else None

    def begin(self, event: UsageEvent, kept: Kept) -> None:
        """Takes an attempt's start."""
        error = self.trouble
        if error is None:
            self._begun.add(event.id)
        kept(error)

    def withdraw(self, id: AttemptId) -> None:
        """Forgets an attempt."""
        self._begun.discard(id)

    def checkpoint(self, events: Iterable[UsageEvent]) -> None:
        """Does nothing: what would need it is gone with this process, and the log, too."""

    def finish(self, event: UsageEvent) -> None:
        """Takes an attempt's event."""
        self._begun.remove(event.id)
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

    def reject(self, index: int) -> None:
        """Keeps an event aside."""
        self.rejected.append(self._events[index])

    def listen(self, appended: Callable[[], None]) -> None:
        """Has `appended` called after each `finish`."""
        self._appended = appended


def metering_behind() -> MeshError:
    """Returns why a log that is full of events takes no more."""
    message = "the worker holds as many unrecorded usage events as it may; ask for another"
    return MeshError(Code.UNAVAILABLE, "METERING_BEHIND", message, retry_after=RETRY_AFTER_S)
