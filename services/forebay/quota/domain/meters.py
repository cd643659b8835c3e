"""What counts of each limit of one tenant, by the rows' names: rates, windows, periods and holds."""

from __future__ import annotations

from collections import defaultdict

from forebay.policy.durations import LEAST_MS
from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.periods import PeriodTotals
from forebay.quota.domain.rates import WEIGHT, Rate, whole
from forebay.quota.domain.rebuild import Standing
from forebay.quota.domain.windows import Window


class Meters:
    """The meters of one tenant. Times are in ms on a timeline, so they never go back.

    Attributes:
        standing: how far the meters can be believed; None while the tenant is absent.
    """

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._windows: defaultdict[str, Window] = defaultdict(Window)
        self._rates: defaultdict[str, Rate] = defaultdict(Rate)
        self._periods: defaultdict[str, PeriodTotals] = defaultdict(PeriodTotals)
        self._held: defaultdict[str, int] = defaultdict(int)

    def used(self, row: Row, now_ms: int) -> int:
        """Returns what counts of a row; all of its value, while that is what a loss makes of it."""
        taken = self._taken(row, now_ms)
        return max(taken, row.value or 0) if self._full_until(row, now_ms) else taken

    def over(self, row: Row, now_ms: int) -> int:
        """Returns by how much a row is too small, of a rate in thousandths; 0 or less where there is room.

        A request that asks nothing of a limit has room, however much is used.
        """
        if row.value is None or row.amount == 0:
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

    def wait_ms(self, row: Row, now_ms: int, clock_ms: int, settled_in_ms: int) -> int:
        """Returns in how long a row without room has room again, or may have.

        Args:
            row: which.
            now_ms: the present.
            clock_ms: the same by the clock, in ms since the epoch.
            settled_in_ms: in how long a request that runs is likely to be settled.
        """
        if full_until := self._full_until(row, now_ms):
            return full_until - now_ms
        over = self.over(row, now_ms)
        match row.kind:
            case Kind.RATE:
                return self.freed_in_ms(row, now_ms, over)
            case Kind.WINDOW:
                own_ms, open_now = self.freed_in_ms(row, now_ms, over), self._windows[row.name].open(now_ms // 1000)
            case Kind.PERIOD:
                assert row.period is not None
                own_ms = max(LEAST_MS, row.period.ends_at_ms - clock_ms)
                open_now = self._periods[row.name].open(row.period.name)
            case Kind.HOLD:
                return settled_in_ms
        return min(own_ms, settled_in_ms) if over <= open_now else own_ms

    def resets_in_ms(self, row: Row, now_ms: int, clock_ms: int) -> int:
        """Returns in how long some of what counts of a row counts no longer; 0 where that is not known. Times as `wait_ms`."""
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
            return max(0, row.period.ends_at_ms - clock_ms)
        return self._windows[row.name].free_at(now_ms // 1000, 1) * 1000 - now_ms

    def take(self, row: Row, now_ms: int) -> None:
        """Takes a row's amount."""
        match row.kind:
            case Kind.RATE:
                self._rates[row.name].take(now_ms, row.drain, row.amount)
            case Kind.WINDOW:
                self._windows[row.name].take(now_ms // 1000, row.amount)
            case Kind.PERIOD:
                assert row.period is not None
                self._periods[row.name].take(row.period.name, row.amount)
            case Kind.HOLD:
                self._held[row.name] += row.amount

    def correct_window(self, name: str, now_ms: int, taken_at_ms: int, difference: int) -> None:
        """Changes what was taken of a window, if that still counts."""
        self._windows[name].correct(now_ms // 1000, taken_at_ms // 1000, difference)

    def open_window(self, name: str, now_ms: int, taken_at_ms: int, amount: int) -> None:
        """Makes more, or less, of what was taken of a window open, if that still counts."""
        self._windows[name].hold(now_ms // 1000, taken_at_ms // 1000, amount)

    def correct_period(self, name: str, period: str, difference: int) -> None:
        """Changes what was taken in a period, if that is remembered."""
        self._periods[name].correct(period, difference)

    def open_period(self, name: str, period: str, amount: int) -> None:
        """Makes more, or less, of what was taken in a period open, if that is remembered."""
        self._periods[name].hold(period, amount)

    def of_period(self, row: Row) -> int | None:
        """Returns what counts in a row's period; None if nothing of it is remembered."""
        assert row.period is not None
        total = self._periods[row.name]
        return total.used(row.period.name) if total.knows(row.period.name) else None

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
