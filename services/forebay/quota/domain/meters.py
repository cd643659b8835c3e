"""What counts of each limit of one tenant, by the rows' names: rates, windows, periods and holds."""

from __future__ import annotations

from collections import defaultdict

from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.periods import PeriodTotal
from forebay.quota.domain.rates import WEIGHT, Rate, whole
from forebay.quota.domain.rebuild import Standing
from forebay.quota.domain.windows import Window

# Nobody knows when a running request will end; a client that waits this long does not hammer.
HOLD_RETRY_MS = 1_000


class Meters:
    """The meters of one tenant. Times are in ms since the epoch, and callers see to it that they never go back.

    Attributes:
        standing: how far the meters can be believed; None while the tenant is absent.
    """

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._windows: defaultdict[str, Window] = defaultdict(Window)
        self._rates: defaultdict[str, Rate] = defaultdict(Rate)
        self._periods: defaultdict[str, PeriodTotal] = defaultdict(PeriodTotal)
        self._held: defaultdict[str, int] = defaultdict(int)

    def used(self, row: Row, now_ms: int) -> int:
        """Returns what counts of a row; all of its value, while that is what a loss makes of it."""
        taken = self._taken(row, now_ms)
        return max(taken, row.value or 0) if self._full_until(row, now_ms) else taken

    def over(self, row: Row, now_ms: int) -> int:
        """Returns by how much a row is too small, of a rate in thousandths; 0 or less where there is room."""
        if row.value is None:
            return 0
        if row.kind is Kind.RATE:
            least = WEIGHT * row.value if self._full_until(row, now_ms) else 0
            level = max(self._rates[row.name].level(now_ms, row.drain), least)
            return level + WEIGHT * (row.amount - row.value)
        return self.used(row, now_ms) + row.amount - row.value

    def freed_in_ms(self, row: Row, now_ms: int, over: int) -> int:
        """Returns how long it takes until so much of a rate or a window is free, or all of it when that is less."""
        if full_until := self._full_until(row, now_ms):
            return full_until - now_ms
        if row.kind is Kind.RATE:
            return -(-min(over, self._rates[row.name].level(now_ms, row.drain)) // row.drain)
        used = self.used(row, now_ms)
        return self._windows[row.name].free_at(now_ms // 1000, min(over, used)) * 1000 - now_ms if used else 0

    def wait_ms(self, row: Row, now_ms: int) -> int:
        """Returns in how long a row without room has room again, or may have."""
        if full_until := self._full_until(row, now_ms):
            return full_until - now_ms
        match row.kind:
            case Kind.RATE | Kind.WINDOW:
                return self.freed_in_ms(row, now_ms, self.over(row, now_ms))
            case Kind.PERIOD:
                assert row.period is not None
                return max(HOLD_RETRY_MS, row.period.ends_at_ms - now_ms)
            case Kind.HOLD:
                return HOLD_RETRY_MS

    def resets_in_ms(self, row: Row, now_ms: int) -> int:
        """Returns in how long some of what counts of a row counts no longer; 0 where that is not known."""
        used, full_until = self.used(row, now_ms), self._full_until(row, now_ms)
        if full_until:
            return full_until - now_ms
        if row.kind is Kind.HOLD or used == 0:
            return 0
        if row.kind is Kind.RATE:
            level = self._rates[row.name].level(now_ms, row.drain)
            return -(-(level - WEIGHT * (used - 1)) // row.drain)
        if row.kind is Kind.PERIOD:
            assert row.period is not None
            return max(0, row.period.ends_at_ms - now_ms)
        return self._windows[row.name].free_at(now_ms // 1000, 1) * 1000 - now_ms

    def take(self, row: Row, now_ms: int) -> str:
        """Takes a row's amount; returns the period to which it was added, for that kind."""
        match row.kind:
            case Kind.RATE:
                self._rates[row.name].take(now_ms, row.drain, row.amount)
            case Kind.WINDOW:
                self._windows[row.name].take(now_ms // 1000, row.amount)
            case Kind.PERIOD:
                assert row.period is not None
                return self._periods[row.name].take(row.period.name, row.amount)
            case Kind.HOLD:
                self._held[row.name] += row.amount
        return ""

    def add_to_period(self, row: Row) -> bool:
        """Adds a row's amount to its period, or does nothing if that is over; returns whether it was added."""
        assert row.period is not None
        return self._periods[row.name].add(row.period.name, row.amount)

    def correct_window(self, name: str, now_ms: int, taken_at_ms: int, difference: int) -> None:
        """Changes what was taken of a window, if that still counts."""
        self._windows[name].correct(now_ms // 1000, taken_at_ms // 1000, difference)

    def correct_period(self, name: str, period: str, difference: int) -> None:
        """Changes what was taken in a period, if it is still the present one."""
        self._periods[name].correct(period, difference)

    def of_period(self, row: Row) -> int | None:
        """Returns what counts in a row's period; None if that is not the present one."""
        assert row.period is not None
        total = self._periods[row.name]
        return total.used(row.period.name) if total.name == row.period.name else None

    def held(self, name: str) -> int:
        """Returns what is held."""
        return self._held[name]

    def hold(self, name: str, amount: int) -> None:
        """Holds more, or less."""
        self._held[name] += amount

    def _taken(self, row: Row, now_ms: int) -> int:
        match row.kind:
            case Kind.RATE:
                return whole(self._rates[row.name].level(now_ms, row.drain))
            case Kind.WINDOW:
                return self._windows[row.name].used(now_ms // 1000)
            case Kind.PERIOD:
                assert row.period is not None
                return self._periods[row.name].used(row.period.name)
            case Kind.HOLD:
                return self._held[row.name]

    def _full_until(self, row: Row, now_ms: int) -> int:
        """Returns until when a row counts as used up because of a loss; 0 if it does not now."""
        until = self.standing.full_until_ms(row) if self.standing is not None else 0
        return until if until > now_ms else 0
