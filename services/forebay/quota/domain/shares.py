"""Who may admit without the common counters, and how much: parts of one whole that never make more than the whole.

There are two kinds of loss. When the counters are away, quota admits by itself; when quota is away, routers do. Each may happen
in the midst of the other and nobody notices at the same moment, so what may be spent is divided beforehand. The whole is this
replica's portion of each limit. Routers have equal parts of it while the counters are there, and quota has what they do not have
once the counters are away. A part counts from before its holder is told of it until one of these:

- the holder has acknowledged a smaller one, and a minute has passed since it last admitted anybody: then no window of a minute
  holds what was admitted under both;
- its time is over, and a minute has passed. A router's time runs from when it *sent* the acknowledgement that the part answers,
  and quota counts from when it *received* it, so that a router's time is over first.

The sum of what counts is at most 1 at any moment, by `offer` and `claim`, the only two that give. What a day or a month has left
is divided in the same parts, and quota tells it after what was admitted before has been charged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

# A window is a minute in buckets of a second.
WINDOW_S = 61.0
# A smaller part is of no use.
MOST_PARTS = 10_000
NOTHING, WHOLE = Fraction(0), Fraction(1)
# The name under which quota's own part is kept; no router's.
OWN = ""


@dataclass(slots=True)
class _Router:
    """What a router may hold, and until when; `spent_at` is when it last admitted anybody by itself."""

    held: Fraction
    until: float
    present: bool
    spent_at: float = -math.inf


class Shares:
    """The parts of one replica of quota. Times are in seconds of a monotonic clock.

    Attributes:
        away: whether the counters are; routers are offered nothing then.
    """

    def __init__(self, lease_s: float, found: Mapping[str, int], now: float) -> None:
        """Begins with what an earlier life may have given out.

        Args:
            lease_s: for how long a part holds.
            found: the parts by router, as `parts` said last.
            now: the present.
        """
        self.away = False
        self._lease_s = lease_s
        self._routers = {
            router: _Router(_part(parts), now + lease_s, False) for router, parts in found.items() if router != OWN
        }
        self._own = _part(found.get(OWN, 0))
        self._own_spent_at = now

    def join(self, router: str, parts: int, spent_ago_s: float | None, now: float) -> None:
        """A router has come, with what it still holds."""
        known = self._routers.get(router)
        held = max(known.held if known else NOTHING, _part(parts))
        spent_at = known.spent_at if known else -math.inf
        self._routers[router] = _Router(held, now + self._lease_s, True, _latest(spent_at, spent_ago_s, now))

    def leave(self, router: str) -> None:
        """A router is gone, or cut off and spending."""
        self._routers[router].present = False

    def acknowledge(self, router: str, parts: int, spent_ago_s: float | None, now: float) -> None:
        """A router has taken up the part that it was told of last."""
        state = self._routers[router]
        state.spent_at = _latest(state.spent_at, spent_ago_s, now)
        state.until = now + self._lease_s
        if now >= state.spent_at + WINDOW_S:
            state.held = _part(parts)

    def offer(self, router: str, now: float) -> int:
        """Returns into how many parts the whole is divided for a router that is present, 0 for nothing."""
        self._expire(now)
        others = sum((state.held for name, state in self._routers.items() if name != router), self._own)
        room = WHOLE - others
        if self.away or room <= 0:
            return 0
        parts = max(len(self._routers), math.ceil(1 / room))
        return parts if parts <= MOST_PARTS else 0

    def tell(self, router: str, parts: int) -> None:
        """A router is being told of its part; from now on it counts."""
        state = self._routers[router]
        state.held = max(state.held, _part(parts))

    def claim(self, now: float) -> Fraction:
        """Returns what quota may admit by itself now, and counts it as spent."""
        self._expire(now)
        self._own = max(WHOLE - sum((state.held for state in self._routers.values()), NOTHING), NOTHING)
        self._own_spent_at = now
        return self._own

    def parts(self) -> dict[str, int]:
        """Returns what may be given out, to be kept for the next life; rounded to larger parts."""
        held = {OWN: self._own} | {router: state.held for router, state in self._routers.items()}
        return {name: int(1 / part) for name, part in held.items() if part > 0}

    def _expire(self, now: float) -> None:
        if not self.away and now >= self._own_spent_at + WINDOW_S:
            self._own = NOTHING
        for router, state in list(self._routers.items()):
            if now >= state.until + WINDOW_S:
                state.held = NOTHING
            if not state.present and not state.held:
                del self._routers[router]


def _part(parts: int) -> Fraction:
    return Fraction(1, parts) if parts else NOTHING


def _latest(spent_at: float, spent_ago_s: float | None, now: float) -> float:
    return spent_at if spent_ago_s is None else max(spent_at, now - spent_ago_s)
