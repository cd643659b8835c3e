"""One commit of the ledger, worked out: which rows the reports of a batch become.

A ledger hands in what it holds of the requests concerned, posts the reports one by one, and writes `entries`, `held`
and `released` in one commit with the new heads. The rules:

- The first report of an attempt becomes its row; a report that changes what is believed of the attempt becomes a
  correction row with the differences; anything else changes nothing. So the order and the number of reports do not
  matter (law 2).
- A router's report of an attempt without a row is held, since the worker knows better and is likely to report yet. A
  worker's report takes up what is held; what nobody took up is confirmed after a while (rule P5).
- What an attempt bills depends on the others of its request (rule P6): a later one clips it, and the first of them bills
  the prompt. What one more attempt changes in the others becomes correction rows.
- A correction that moves an attempt to another group of the totals (its outcome or its day, say) takes the old row
  back whole in one row and books it anew in the next: each group of rows sums to what stands in it.
- A request belongs to the tenant of its first row; another tenant's report of it is not recorded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from forebay.metering.domain.charge import PriceLine, Usage, billed, changes, charge, net
from forebay.metering.domain.entry import GENESIS, LedgerEntry, Row, day, seal
from forebay.metering.domain.event import AttemptKey, Source, UsageEvent, better
from forebay.metering.domain.prices import PriceTable


class Disposition(enum.Enum):
    """What became of a report."""

    RECORDED = "recorded"
    CORRECTED = "corrected"
    HELD = "held"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"  # another tenant has this request; the report is not recorded


@dataclass(frozen=True, slots=True)
class Opening:
    """What a ledger holds when a commit begins.

    Attributes:
        head: the last position; 0 for an empty ledger.
        hashes: by tenant, the last row's chain_hash, for at least the tenants concerned that have rows.
        entries: all rows of the requests concerned, in order.
        held: the reports held for the attempts concerned.
    """

    head: int
    hashes: Mapping[str, bytes]
    entries: Sequence[LedgerEntry]
    held: Mapping[AttemptKey, UsageEvent]


@dataclass(slots=True)
class _Attempt:
    """The sum of an attempt's rows."""

    event: UsageEvent
    position: int
    usage: Usage = field(default_factory=Usage)
    lines: tuple[PriceLine, ...] = ()


class Posting:
    """A commit in the making.

    Attributes:
        entries: the new rows, in order.
        held: reports to hold from now on.
        released: attempts whose held report is taken up.
        head: the last position.
        hashes: by tenant, the last row's chain_hash.
    """

    def __init__(self, opening: Opening, prices: PriceTable, now_ns: int) -> None:
        self.entries: list[LedgerEntry] = []
        self.held: dict[AttemptKey, UsageEvent] = {}
        self.released: set[AttemptKey] = set()
        self.head = opening.head
        self.hashes = dict(opening.hashes)
        self._prices = prices
        self._now_ns = now_ns
        self._waiting = dict(opening.held)
        self._requests: dict[str, dict[int, _Attempt]] = {}
        for entry in opening.entries:
            self._count(entry.row)

    def post(self, report: UsageEvent) -> Disposition:
        """Takes one report in, and says what became of it."""
        key = report.key
        waiting = self._waiting.get(key)
        attempts = self._requests.get(report.request_id, {})
        if _foreign(report, attempts):
            return Disposition.CONFLICT
        if report.source is Source.ROUTER and report.attempt not in attempts:
            if waiting:
                return Disposition.UNCHANGED
            self._waiting[key] = self.held[key] = report
            return Disposition.HELD
        if waiting:
            report = better(waiting, report)
            self._release(key)
        return self._book(report)

    def confirm(self, report: UsageEvent) -> Disposition:
        """Books a report that was held, since no better one came."""
        self._release(report.key)
        if _foreign(report, self._requests.get(report.request_id, {})):
            return Disposition.CONFLICT
        return self._book(report)

    def _release(self, key: AttemptKey) -> None:
        self._waiting.pop(key, None)
        self.held.pop(key, None)
        self.released.add(key)

    def _book(self, report: UsageEvent) -> Disposition:
        attempts = self._requests.get(report.request_id, {})
        known = attempts.get(report.attempt)
        believed = better(known.event, report) if known else report
        if known and believed == known.event:
            return Disposition.UNCHANGED
        events = {number: attempt.event for number, attempt in attempts.items()} | {report.attempt: believed}
        usages = billed(events)
        for number in sorted(usages):
            if number == report.attempt or usages[number] != attempts[number].usage:
                self._write(attempts.get(number), events[number], usages[number])
        return Disposition.CORRECTED if known else Disposition.RECORDED

    def _write(self, known: _Attempt | None, event: UsageEvent, usage: Usage) -> None:
        lines = charge(event, usage, self._prices)
        if known is None:
            self._append(event, 0, usage, lines)
        elif group(known.event) == group(event):
            self._append(event, known.position, usage + -known.usage, changes(known.lines, lines))
        else:
            self._append(known.event, known.position, -known.usage, changes(known.lines, ()))
            self._append(event, known.position, usage, lines)

    def _append(self, event: UsageEvent, corrects: int, usage: Usage, lines: tuple[PriceLine, ...]) -> None:
        self.head += 1
        row = Row(self.head, event, corrects, usage, lines, self._now_ns)
        entry = seal(row, self.hashes.get(event.tenant_id, GENESIS))
        self.hashes[event.tenant_id] = entry.chain_hash
        self.entries.append(entry)
        self._count(row)

    def _count(self, row: Row) -> None:
        attempts = self._requests.setdefault(row.event.request_id, {})
        attempt = attempts.setdefault(row.event.attempt, _Attempt(row.event, row.position))
        attempt.event = row.event
        attempt.usage += row.usage
        attempt.lines = net((*attempt.lines, *row.lines))


def _foreign(report: UsageEvent, attempts: Mapping[int, _Attempt]) -> bool:
    return any(attempt.event.tenant_id != report.tenant_id for attempt in attempts.values())


def group(event: UsageEvent) -> tuple[str, str, str, str, str]:
    """Returns the totals' group that an event counts in: tenant, key, model, day, outcome."""
    return event.tenant_id, event.key_id, event.model, day(event.finished_at_ns), event.outcome.value
