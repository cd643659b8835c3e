"""Days and months of a tenant's time zone, and what was taken in the latest of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Period:
    """One day or month.

    Attributes:
        name: such as 2026-11-22 or 2026-11; a later one sorts after an earlier one.
        starts_at_ms, ends_at_ms: ms since the epoch; the end belongs to the next period.
    """

    name: str
    starts_at_ms: int
    ends_at_ms: int


# Of one limit, so many days or months are remembered.
KEPT = 4


class PeriodTotals:
    """What was taken of one limit in each day, or each month: of the four that were named last.

    A process whose clock is ahead for a while names a day that has not come. What was taken today is still known when it names
    today again, and what it took of tomorrow counts tomorrow: no day has more than its limit. Open, of what was taken, is what
    requests hold that still run, so that a settlement may give it back.
    """

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._open: dict[str, int] = {}

    def knows(self, name: str) -> bool:
        """Whether anything is remembered of a period."""
        return name in self._totals

    def used(self, name: str) -> int:
        """Returns what counts in a period."""
        return self._totals.get(name, 0)

    def open(self, name: str) -> int:
        """Returns how much of what counts in a period is open."""
        return self._open.get(name, 0)

    def take(self, name: str, amount: int) -> None:
        """Adds to a period, and forgets the one that was named before all others when there are more than are kept."""
        self._totals[name] = self._totals.pop(name, 0) + amount
        if len(self._totals) > KEPT:
            oldest = next(iter(self._totals))
            del self._totals[oldest]
            self._open.pop(oldest, None)

    def correct(self, name: str, difference: int) -> None:
        """Changes what was taken in a period, if it is remembered."""
        if name in self._totals:
            self._totals[name] += difference

    def hold(self, name: str, amount: int) -> None:
        """Makes more, or less, of a period open, if it is remembered."""
        if name in self._totals:
            self._open[name] = self._open.get(name, 0) + amount


@dataclass(frozen=True, slots=True)
class Calendar:
    """The day and the month in which a request is admitted."""

    day: Period
    month: Period


def calendar(now_s: float, time_zone: str) -> Calendar:
    """Returns the day and the month of a time, in seconds since the epoch; the zone is an IANA name."""
    zone = ZoneInfo(time_zone)
    today = datetime.fromtimestamp(now_s, zone)
    return _calendar(today.year, today.month, today.day, time_zone)


@lru_cache(maxsize=4_096)
def _calendar(year: int, month: int, day: int, time_zone: str) -> Calendar:
    zone = ZoneInfo(time_zone)
    today = datetime(year, month, day, tzinfo=zone).date()
    first = today.replace(day=1)
    next_first = (first + timedelta(days=32)).replace(day=1)

    def begins_ms(date: object) -> int:
        return int(datetime.combine(date, time(), zone).timestamp() * 1000)  # type: ignore[arg-type]

    return Calendar(
        Period(today.isoformat(), begins_ms(today), begins_ms(today + timedelta(days=1))),
        Period(f"{today:%Y-%m}", begins_ms(first), begins_ms(next_first)),
    )
