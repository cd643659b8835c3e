"""The sliding window: at most so much in any minute, in one-second buckets.

A limit is kept by the sum over the present bucket and the 60 before it. Any interval of 60 s touches at most 61 buckets, so no
60 s can hold more than the limit; the price is that what was taken counts for up to a second too long. Rejected: fixed minutes
admit twice the limit around a boundary, and two weighted minutes (the usual estimate) can be wrong both ways.

Of each bucket it is known how much of it is *open*: taken by requests that still run, so that a settlement may give it back.
"""

from __future__ import annotations

WINDOW_SECONDS = 60


class Window:
    """What was taken of one limit in each second of the last minute."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._open: dict[int, int] = {}

    def used(self, second: int) -> int:
        """Returns what counts in `second`."""
        return sum(amount for at, amount in self._buckets.items() if at >= second - WINDOW_SECONDS)

    def open(self, second: int) -> int:
        """Returns how much of what counts in `second` is open."""
        return sum(amount for at, amount in self._open.items() if at >= second - WINDOW_SECONDS)

    def take(self, second: int, amount: int) -> None:
        """Adds to the present bucket."""
        for buckets in (self._buckets, self._open):
            for old in [at for at in buckets if at < second - WINDOW_SECONDS]:
                del buckets[old]
        self._buckets[second] = self._buckets.get(second, 0) + amount

    def correct(self, second: int, taken_in: int, difference: int) -> None:
        """Changes what was taken in an earlier second, if that still counts."""
        if taken_in >= second - WINDOW_SECONDS:
            self._buckets[taken_in] += difference

    def hold(self, second: int, taken_in: int, amount: int) -> None:
        """Makes more, or less, of an earlier second open, if that still counts."""
        if taken_in >= second - WINDOW_SECONDS:
            self._open[taken_in] = self._open.get(taken_in, 0) + amount

    def free_at(self, second: int, amount: int) -> int:
        """Returns the first second in which `amount` of what counts in `second` counts no longer; `second` when nothing does."""
        freed = 0
        for at in sorted(at for at in self._buckets if at >= second - WINDOW_SECONDS):
            freed += self._buckets[at]
            if freed >= amount:
                return at + WINDOW_SECONDS + 1
        return second
