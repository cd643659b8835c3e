"""The counters of one tenant: the specification that the scripts in `forebay.quota.lua` must equal.

Every operation takes a reading of the store's clock in ms since the epoch, and goes by the tenant's own timeline, which a clock
that steps neither stops nor turns back (`forebay.quota.domain.timeline`). All operations are atomic.

Charges of a window stay in the second in which the request was admitted: a settlement corrects that second, so the minute is held
to what was *admitted* in it, and a request that runs for longer than a minute no longer counts when it ends. So do charges of a
day or a month, which is how a budget is a hold of the most that a request can cost, replaced by what it did cost. Days and months
are those that callers name, and no day has more than its limit, in whichever order they are named.

A refusal says when to try again. What settled requests have used comes back when the limit says so. If there would be room
without what running requests hold, a settlement may bring it sooner, and the wait is the median time that recent requests took.

A tenant whose state is not there, new or lost, is absent: what depends on that state raises NeedsRebuildError until `begin`, and
once more when its gathering has ended, until `complete` (`forebay.quota.domain.rebuild`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from forebay.policy.durations import Durations
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.meters import Meters
from forebay.quota.domain.rebuild import Gathered, NeedsRebuildError, Standing, Totals
from forebay.quota.domain.reservations import (
    TOKENS,
    Decision,
    LimitState,
    Observation,
    Order,
    Outcome,
    Reservation,
    Router,
    State,
    Swept,
    Terms,
)
from forebay.quota.domain.timeline import Timeline


@dataclass(frozen=True, slots=True)
class _Entry:
    """A live reservation with what it took, by counter name (of periods in which one), and what the ledger says of it."""

    reservation: Reservation
    windows: Mapping[str, int]
    periods: Mapping[str, tuple[int, str]]
    holds: Mapping[str, int]
    observed: Observation | None = None


@dataclass(frozen=True, slots=True)
class _Settled:
    """A settled reservation while it is remembered, with what days and months were charged, which the ledger may yet correct.

    Attributes:
        periods: by counter name, the period and what it was charged.
        amounts: what was charged, by limit.
        least: the tokens that the router said; with fewer, the ledger lacks rows. 0 if no router said anything.
        position: of the ledger's row that it was charged by; 0 for what the router said.
        short: what the ledger says, with fewer tokens than the router; it is charged when the settlement is forgotten.
    """

    owner: Router
    forget_at_ms: int
    periods: Mapping[str, str]
    amounts: Mapping[str, int]
    least: int
    position: int
    short: Observation | None = None


class TenantCounters:
    """The state of one tenant and what can be done with it."""

    def __init__(self, terms: Terms, *, remains: bool = False) -> None:
        """Begins absent; `remains` says that the store has lost a part of the tenant's state, and what is left shows that."""
        self._terms = terms
        self._remains = remains
        self._timeline = Timeline()
        self._meters = Meters()
        self._durations = Durations()
        self._live: dict[str, _Entry] = {}
        self._settled: dict[str, _Settled] = {}

    def begin(self, clock_ms: int, *, lost: bool) -> bool:
        """Puts an absent tenant's counters there, as a new one's or to gather what a lost one's were; False if they are.

        A tenant of which anything remains is no new one, whatever the caller knows.
        """
        if self._meters.standing is not None:
            return False
        lost = lost or self._remains
        now_ms = self._timeline.advance(clock_ms)
        self._meters.standing = Standing(now_ms, now_ms + self._terms.lease_ms, lost, ready=not lost)
        return True

    def restore(self, clock_ms: int, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant, whether there is room or not; returns whether it is held now.

        Of a reservation that is known nothing is taken again. Only holds and periods are: its minutes begin full. Once gathering
        would have ended it is too late: the ledger's sum may have the request.
        """
        now_ms = self._timeline.at(clock_ms)
        if self._meters.standing is None:
            raise NeedsRebuildError
        known = self._live.get(order.request_id)
        if known is not None or order.request_id in self._settled:
            held = known is not None and known.reservation.state is State.HELD
            return held and self._owner(order.request_id) == order.router
        if now_ms >= self._meters.standing.gathers_until_ms:
            return False
        self._timeline.advance(clock_ms)
        lasting = [row for row in rows if row.kind in (Kind.PERIOD, Kind.HOLD)]
        for row in lasting:
            self._meters.take(row, now_ms)
        at_ms = now_ms + min(reserved_at_ms, clock_ms) - clock_ms
        self._book(Reservation(order, State.HELD, at_ms, now_ms + self._terms.lease_ms), lasting, now_ms)
        return True

    def gathered(self, clock_ms: int) -> Gathered | None:
        """Returns what is to be completed; None while the tenant is absent, gathers or is ready."""
        now_ms, standing = self._timeline.at(clock_ms), self._meters.standing
        if standing is None or standing.ready or now_ms < standing.gathers_until_ms:
            return None
        return Gathered(standing.began_ms, tuple(sorted([*self._live, *self._settled])))

    def complete(self, clock_ms: int, gathered: Gathered, rows: Sequence[Row]) -> bool:
        """Adds the ledger's sums to days and months, each row's amount, and makes the tenant ready.

        False if somebody else did, or if there are other requests in the books now than those that the sums have left out.
        """
        now_ms = self._timeline.at(clock_ms)
        standing, known = self._meters.standing, len(self._live) + len(self._settled)
        left_out = (gathered.began_ms, len(gathered.request_ids))
        if standing is None or standing.ready or (standing.began_ms, known) != left_out:
            return False
        self._timeline.advance(clock_ms)
        for row in rows:
            self._meters.take(row, now_ms)
        self._meters.standing = replace(standing, ready=True)
        return True

    def totals(self, clock_ms: int, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""
        self._timeline.at(clock_ms)
        if self._meters.standing is None or not self._meters.standing.ready:
            return None
        counted = {}
        for row in rows:
            if row.period is not None and (used := self._meters.of_period(row)) is not None:
                taken = [entry.periods.get(row.name, (0, "")) for entry in self._live.values()]
                counted[row.name] = used - sum(amount for amount, period in taken if period == row.period.name)
        return Totals(clock_ms, tuple(sorted(self._live)), counted)

    def reserve(self, clock_ms: int, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount if all of them have room, and nothing otherwise.

        A repeat by the router that made the reservation is admitted again without taking anything, whatever became of it.
        """
        self._believed(clock_ms)
        now_ms = self._timeline.advance(clock_ms)
        owner = self._owner(order.request_id)
        if owner is not None:
            return Decision(Outcome.ADMITTED if owner == order.router else Outcome.TAKEN)
        full = [row for row in rows if self._meters.over(row, now_ms) > 0]
        if full:
            settled_in_ms = self._durations.median_ms
            return Decision(
                Outcome.REFUSED,
                tuple(row.violation(self._meters.used(row, now_ms)) for row in full),
                max(self._meters.wait_ms(row, now_ms, clock_ms, settled_in_ms) for row in full),
            )
        noticed = [(row, self._meters.used(row, now_ms)) for row in rows]
        for row in rows:
            self._meters.take(row, now_ms)
        self._book(Reservation(order, State.HELD, now_ms, now_ms + self._terms.lease_ms), rows, now_ms)
        return Decision.admitted(noticed)

    def take(self, clock_ms: int, rows: Sequence[Row]) -> list[Taken]:
        """Takes the amounts of rates and windows if all of them have room, and nothing otherwise.

        No reservation is made: what was taken counts for its time, whatever comes.
        """
        self._believed(clock_ms)
        now_ms = self._timeline.advance(clock_ms)
        over = [self._meters.over(row, now_ms) for row in rows]
        if all(each <= 0 for each in over):
            for row in rows:
                self._meters.take(row, now_ms)
        return [
            Taken(
                each <= 0,
                self._meters.used(row, now_ms),
                self._meters.freed_in_ms(row, now_ms, each)
                if each > 0
                else self._meters.resets_in_ms(row, now_ms, clock_ms),
            )
            for row, each in zip(rows, over, strict=True)
        ]

    def settle(self, clock_ms: int, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used; returns whether this settlement is the one that counts.

        Args:
            clock_ms: the present.
            request_id: the reservation.
            amounts: what was used, by limit; a limit that is not named was not used.
        """
        if self._meters.standing is None:
            raise NeedsRebuildError
        now_ms = self._timeline.advance(clock_ms)
        entry = self._live.get(request_id)
        if entry is None:
            return False
        if entry.reservation.state is State.HELD:
            self._durations.ended(now_ms - entry.reservation.reserved_at_ms)
        self._finish(now_ms, entry, amounts, least=amounts.get(TOKENS, 0))
        return True

    def observe(self, clock_ms: int, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations, and corrects days and months of settled ones by it.

        Returns how many observations were news.
        """
        now_ms = self._timeline.at(clock_ms)
        news = 0
        for observation in observations:
            if observation.request_id in self._settled:
                news += self._correct(observation)
                continue
            entry = self._live.get(observation.request_id)
            if entry is None or not observation.is_news_after(entry.observed):
                continue
            reservation = entry.reservation
            if reservation.state is State.EXPIRED:
                reservation = replace(reservation, due_ms=now_ms + self._terms.patience_ms(observation))
            self._live[observation.request_id] = replace(entry, reservation=reservation, observed=observation)
            news += 1
        if news:
            self._timeline.advance(clock_ms)
        return news

    def renew(self, clock_ms: int, router: Router, request_ids: Sequence[str], rows: Sequence[Row]) -> list[str]:
        """Extends the leases of a router's reservations; returns those that are lost.

        An expired one is revived if what it held still has room. What it took by the minute was never given back.
        """
        if self._meters.standing is None:
            raise NeedsRebuildError
        now_ms = self._timeline.advance(clock_ms)
        values = {row.name: row.value for row in rows}
        lost = []
        for request_id in request_ids:
            entry = self._live.get(request_id)
            if entry is None or entry.reservation.order.router != router:
                lost.append(request_id)
            elif entry.reservation.state is State.HELD:
                self._extend(now_ms, entry)
            elif all(
                taken == 0 or _fits(self._meters.held(name) + taken, values.get(name))
                for name, taken in entry.holds.items()
            ):
                self._hold(now_ms, entry, 1)
                self._extend(now_ms, entry)
            else:
                lost.append(request_id)
        return lost

    def sweep(self, clock_ms: int, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves on what is due, oldest first: held to expired, expired to settled by what was observed, settled to forgotten.

        Nothing is forgotten before `complete`, which counts on that: nothing is due before gathering ends, and then this raises.

        Args:
            clock_ms: the present.
            most: so many at most.
            not_after_ms: what the clock reads at most unless it has stepped forward, and then nothing is moved on; None for no
                such bound.
        """
        now_ms = self._believed(clock_ms)
        if not_after_ms is not None and clock_ms > not_after_ms:
            return Swept()
        live = [(entry.reservation.due_ms, request_id) for request_id, entry in self._live.items()]
        remembered = [(settled.forget_at_ms, request_id) for request_id, settled in self._settled.items()]
        due = sorted(item for item in live + remembered if item[0] <= now_ms)[:most]
        if due:
            self._timeline.advance(clock_ms)
        expired = settled = forgotten = 0
        for _, request_id in due:
            entry = self._live.get(request_id)
            if entry is None:
                if (short := self._settled[request_id].short) is not None:
                    self._charge(request_id, short)
                del self._settled[request_id]
                forgotten += 1
            elif entry.reservation.state is State.HELD:
                self._hold(now_ms, entry, -1)
                due_ms = now_ms + self._terms.patience_ms(entry.observed)
                reservation = replace(entry.reservation, state=State.EXPIRED, due_ms=due_ms)
                self._live[request_id] = replace(entry, reservation=reservation)
                expired += 1
            else:
                self._finish(now_ms, entry, entry.observed.amounts if entry.observed else {}, least=0)
                settled += 1
        return Swept(expired, settled, forgotten)

    def peek(self, clock_ms: int, rows: Sequence[Row]) -> list[LimitState]:
        """Returns the state of the limits that exist; changes nothing."""
        now_ms = self._believed(clock_ms)
        return [
            LimitState(
                row.subject,
                row.limit,
                row.value,
                self._meters.used(row, now_ms),
                self._meters.resets_in_ms(row, now_ms, clock_ms),
            )
            for row in rows
            if row.value is not None
        ]

    def reservations(self, clock_ms: int, after: str, most: int) -> list[Reservation]:
        """Returns live reservations in order of their request id, those after `after`; times in ms since the epoch."""
        ahead_ms = self._timeline.at(clock_ms) - clock_ms
        chosen = sorted(request_id for request_id in self._live if request_id > after)[:most]
        return [
            replace(
                reservation,
                reserved_at_ms=reservation.reserved_at_ms - ahead_ms,
                due_ms=reservation.due_ms - ahead_ms,
            )
            for reservation in (self._live[request_id].reservation for request_id in chosen)
        ]

    def _believed(self, clock_ms: int) -> int:
        """Returns the present, if the counters can be believed in it."""
        now_ms, standing = self._timeline.at(clock_ms), self._meters.standing
        if standing is None or (not standing.ready and now_ms >= standing.gathers_until_ms):
            raise NeedsRebuildError
        return now_ms

    def _owner(self, request_id: str) -> Router | None:
        if request_id in self._live:
            return self._live[request_id].reservation.order.router
        return self._settled[request_id].owner if request_id in self._settled else None

    def _extend(self, now_ms: int, entry: _Entry) -> None:
        reservation = replace(entry.reservation, state=State.HELD, due_ms=now_ms + self._terms.lease_ms)
        self._live[reservation.order.request_id] = replace(entry, reservation=reservation)

    def _book(self, reservation: Reservation, rows: Sequence[Row], now_ms: int) -> None:
        """Keeps a reservation with what it took of each row."""
        entry = _Entry(
            reservation,
            {row.name: row.amount for row in rows if row.kind is Kind.WINDOW},
            {row.name: (row.amount, row.period.name) for row in rows if row.period is not None},
            {row.name: row.amount for row in rows if row.kind is Kind.HOLD},
        )
        self._live[reservation.order.request_id] = entry
        self._open(now_ms, entry, 1)

    def _hold(self, now_ms: int, entry: _Entry, sign: int) -> None:
        """Holds what a reservation holds, by sign 1, or gives it back, by sign -1."""
        for name, taken in entry.holds.items():
            self._meters.hold(name, sign * taken)
        self._open(now_ms, entry, sign)

    def _open(self, now_ms: int, entry: _Entry, sign: int) -> None:
        """Counts what a reservation took as open, or no longer."""
        for name, taken in entry.windows.items():
            self._meters.open_window(name, now_ms, entry.reservation.reserved_at_ms, sign * taken)
        for name, (taken, period) in entry.periods.items():
            self._meters.open_period(name, period, sign * taken)

    def _finish(self, now_ms: int, entry: _Entry, amounts: Mapping[str, int], *, least: int) -> None:
        for name, taken in entry.windows.items():
            difference = amounts.get(name.rpartition("/")[2], 0) - taken
            self._meters.correct_window(name, now_ms, entry.reservation.reserved_at_ms, difference)
        observed = entry.observed
        known = observed is not None and observed.tokens >= least
        charged, position = (observed.amounts, observed.position) if observed and known else (amounts, 0)
        for name, (taken, period) in entry.periods.items():
            self._meters.correct_period(name, period, charged.get(name.rpartition("/")[2], 0) - taken)
        if entry.reservation.state is State.HELD:
            self._hold(now_ms, entry, -1)
        order = entry.reservation.order
        del self._live[order.request_id]
        forget_at_ms = now_ms + self._terms.remembered_ms
        periods = {name: period for name, (_, period) in entry.periods.items()}
        self._settled[order.request_id] = _Settled(
            order.router, forget_at_ms, periods, charged, least, position, short=None if known else observed
        )

    def _correct(self, observation: Observation) -> bool:
        """Takes in what the ledger says of a settled request; returns whether that is news."""
        settled = self._settled[observation.request_id]
        latest = max(settled.position, settled.short.position if settled.short is not None else 0)
        if not settled.periods or observation.position <= latest:
            return False
        if observation.tokens >= settled.least:
            self._charge(observation.request_id, observation)
        else:
            self._settled[observation.request_id] = replace(settled, short=observation)
        return True

    def _charge(self, request_id: str, observation: Observation) -> None:
        """Has days and months be charged with what the ledger says of a settled request."""
        settled = self._settled[request_id]
        for name, period in settled.periods.items():
            limit = name.rpartition("/")[2]
            difference = observation.amounts.get(limit, 0) - settled.amounts.get(limit, 0)
            self._meters.correct_period(name, period, difference)
        changed = replace(settled, amounts=observation.amounts, position=observation.position, short=None)
        self._settled[request_id] = changed


def _fits(total: int, value: int | None) -> bool:
    return value is None or total <= value
