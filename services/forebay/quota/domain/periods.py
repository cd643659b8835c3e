"""Days and months of a tenant's time zone, and what was taken in the present one."""

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


class PeriodTotal:
    """What was taken of one limit in the latest period that anybody named; an earlier one than that counts as that one."""

    def __init__(self) -> None:
        self._name = ""
        self._total = 0

    @property
    def name(self) -> str:
        """The present period; empty before the first."""
        return self._name

    def used(self, name: str) -> int:
        """Returns what counts in a period."""
        return self._total if name <= self._name else 0

    def take(self, name: str, amount: int) -> str:
        """Adds to a period; returns the one that it was added to."""
        if name > self._name:
            self._name, self._total = name, 0
        self._total += amount
        return self._name

    def add(self, name: str, amount: int) -> bool:
        """Adds to a period, or does nothing if it is over; returns whether it was added."""
        return name >= self._name and self.take(name, amount) == name

    def correct(self, name: str, difference: int) -> None:
        """Changes what was taken in a period, if it is still the present one."""
        if name == self._name:
            self._total += difference


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
