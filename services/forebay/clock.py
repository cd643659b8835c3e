"""Time as a thing that is passed in, so that tests can move it (`forebay.testing.clock.FakeClock`)."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

# A smaller step is a correction, and followed at once; a larger one is believed when it has lasted.
NOTICED_S = 1.0
BELIEVED_AFTER_S = 60.0


class Clock(Protocol):
    """What the services know of time."""

    def now(self) -> float:
        """Returns the wall clock in seconds since the epoch; for records, never for spans."""

    def monotonic(self) -> float:
        """Returns seconds that only go forward; for spans, never for records."""

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` of this clock."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Returns the wall clock in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Returns seconds that only go forward."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`."""
        await asyncio.sleep(seconds)


class SteadyClock:
    """A clock whose wall time does not follow a step before the step has lasted.

    Wall clocks are set wrong and right again. A service that followed each step would open tomorrow's budgets, record usage on
    another day and let keys expire, for the two seconds in which the clock was ahead. This one goes on by the monotonic clock,
    and takes the wall clock's word once it has said the same for a minute. A service that starts takes it at once.
    """

    def __init__(self, clock: Clock) -> None:
        """Goes by `clock`, both its wall clock and its monotonic one."""
        self._clock = clock
        self._wall, self._monotonic = clock.now(), clock.monotonic()
        # Of a step that has not lasted: how far it went, and since when, by the monotonic clock.
        self._step: tuple[float, float] | None = None

    def now(self) -> float:
        """Returns the wall clock in seconds since the epoch, as if it had not stepped."""
        wall, monotonic = self._clock.now(), self._clock.monotonic()
        steady = self._wall + monotonic - self._monotonic
        off = wall - steady
        if abs(off) > NOTICED_S:
            if self._step is None or abs(off - self._step[0]) > NOTICED_S:
                self._step = (off, monotonic)
            if monotonic - self._step[1] < BELIEVED_AFTER_S:
                return steady
        self._wall, self._monotonic, self._step = wall, monotonic, None
        return wall

    def monotonic(self) -> float:
        """Returns seconds that only go forward."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`."""
        await self._clock.sleep(seconds)
