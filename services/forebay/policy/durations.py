"""How long a tenant's recent requests have held what they took: when a refusal may expect a settlement to make room."""

from __future__ import annotations

from collections import deque

# So many requests are remembered.
REMEMBERED = 15
LEAST_MS, MOST_MS = 100, 30_000
# While no request has ended; a client that waits this long does not hammer.
UNKNOWN_MS = 1_000


class Durations:
    """From reservation to settlement, of the latest requests of one tenant."""

    def __init__(self) -> None:
        self._ms: deque[int] = deque(maxlen=REMEMBERED)

    def ended(self, after_ms: int) -> None:
        """A request was settled, so long after it was reserved."""
        self._ms.append(max(LEAST_MS, min(after_ms, MOST_MS)))

    @property
    def median_ms(self) -> int:
        """The median, the lower one of two, between 0.1 and 30 s; a second before the first settlement."""
        return sorted(self._ms)[(len(self._ms) - 1) // 2] if self._ms else UNKNOWN_MS
