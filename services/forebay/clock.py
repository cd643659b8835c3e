"""Time as a thing that is passed in, so that tests can move it (`forebay.testing.clock.FakeClock`)."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


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
