"""The rate per second: a bucket that leaks, which is GCRA in integers.

Each request taken weighs 1000, and the limit times its weight drains away in a second, so in each millisecond a whole number.
Admitted is what the bucket has room for: a second's worth at once, then as much as has drained; in any t seconds at most
limit × (t + 1). A request that was refused further on, or never started, has been asked for all the same and stays.
"""

from __future__ import annotations

WEIGHT = 1_000


class Rate:
    """What was taken of one rate and has not drained yet."""

    def __init__(self) -> None:
        self._level = 0
        self._at_ms = 0

    def level(self, now_ms: int, per_second: int) -> int:
        """Returns what is in the bucket, in thousandths of a request."""
        return max(0, self._level - per_second * (now_ms - self._at_ms))

    def take(self, now_ms: int, per_second: int, requests: int) -> None:
        """Adds requests."""
        self._level = self.level(now_ms, per_second) + WEIGHT * requests
        self._at_ms = now_ms


def whole(level: int) -> int:
    """Returns a level in requests, those that have drained in part counted whole."""
    return -(-level // WEIGHT)
