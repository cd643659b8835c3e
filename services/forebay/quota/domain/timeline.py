"""Time that a stepped clock neither stops nor turns back.

A *timeline* is the sum of what a clock has gone forward. Each reading of the clock adds what has passed since the reading before.
A reading below that one adds nothing, and the next is measured from it.

Redis' clock steps: an administrator sets it, NTP corrects it, or a failover leads to a server with another one. What follows for
all that is kept on a timeline, such as windows, rates and leases:

- **A step back** costs nothing. The timeline goes on from where it was, so nothing counts twice and nothing counts for less long.
  It is late by the time between the last reading before the step and the first after it.
- **A step forward** cannot be told from silence, and counts as time that has passed. A window or a rate begins anew, so around
  one step forward at most twice its limit is admitted; around k steps within a minute, at most k + 1 times.
- **A step forward and back** is one step forward. Afterwards the timeline stays ahead of the clock, and nothing is waited for.

Example: the clock reads 1000, 1600 (600 ahead), 1002 (right again), 1003. The timeline reads 1000, 1600, 1600, 1601.

Rejected: to take the clock's highest reading for the present, which stops everything for as long as the clock was ahead; and to
move what lies in the future to the present, which forgets in which order it came.
"""

from __future__ import annotations


class Timeline:
    """One timeline. Times are in ms; at first it reads as the clock does."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._clock_ms = 0

    def at(self, clock_ms: int) -> int:
        """Returns the time at a reading of the clock. Of a clock that went back, takes note of its reading."""
        self._clock_ms = min(self._clock_ms, clock_ms)
        return self._now_ms + clock_ms - self._clock_ms

    def advance(self, clock_ms: int) -> int:
        """Moves on to a reading of the clock; returns the time."""
        self._now_ms, self._clock_ms = self.at(clock_ms), clock_ms
        return self._now_ms
