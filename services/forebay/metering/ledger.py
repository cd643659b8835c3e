"""The ledger as its users see it, and its in-memory twin.

Every method is one transaction: it has happened whole when it returns, and not at all when it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.errors import Code, MeshError
from forebay.metering.domain.charge import Usage
from forebay.metering.domain.entry import LedgerEntry
from forebay.metering.domain.event import AttemptKey, UsageEvent
from forebay.metering.domain.posting import Disposition, Opening, Posting
from forebay.metering.domain.prices import PriceTable
from forebay.metering.domain.selection import MAX_TOTALS, Dimension, Total, UsageFilter, too_many_totals


@dataclass(frozen=True, slots=True)
class Page:
    """A run of rows.

    Attributes:
        entries: in order of position.
        position: every selected row up to here is in this page or before it.
    """

    entries: tuple[LedgerEntry, ...]
    position: int


class Ledger(Protocol):
    """An append-only ledger. Any method raises MeshError UNAVAILABLE LEDGER_UNAVAILABLE when the store fails."""

    async def append(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> list[Disposition]:
        """Commits reports in their order and returns what became of each; `now_ns` is the rows' recorded_at."""

    async def confirm(self, held_since_ns: int, prices: PriceTable, now_ns: int, limit: int) -> list[Disposition]:
        """Books up to `limit` reports that have been held since a time or longer; returns what became of each."""

    async def read(self, after: int, selection: UsageFilter, limit: int) -> Page:
        """Returns the first selected rows after a position, at most `limit`."""

    async def sum(self, selection: UsageFilter, dimensions: Sequence[Dimension]) -> list[Total]:
        """Returns the totals of the selected rows by the given dimensions, in order of group.

        Groups that were corrected away are left out; without dimensions there is exactly one total.

        Raises:
            MeshError: OUT_OF_RANGE TOO_MANY_TOTALS.
        """

    async def head(self) -> int:
        """Returns the last position; 0 for an empty ledger."""

    async def probe(self) -> None:
        """Commits a write that changes nothing, which fails as any other would."""


def ledger_unavailable() -> MeshError:
    """Returns the error of a store that cannot be read or written; what is wrong with it is for the log."""
    return MeshError(
        Code.UNAVAILABLE,
        "LEDGER_UNAVAILABLE",
        "the ledger cannot be reached; what was acknowledged is safe, send the rest again",
        retry_after=1.0,
    )


class MemoryLedger:
    """A ledger that ends with the process; for tests."""

    def __init__(self) -> None:
        self._entries: list[LedgerEntry] = []
        self._hashes: dict[str, bytes] = {}
        self._held: dict[AttemptKey, tuple[int, UsageEvent]] = {}

    async def append(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> list[Disposition]:
        """See Ledger."""
        posting = self._open(prices, now_ns)
        dispositions = [posting.post(report) for report in reports]
        self._commit(posting, now_ns)
        return dispositions

    async def confirm(self, held_since_ns: int, prices: PriceTable, now_ns: int, limit: int) -> list[Disposition]:
        """See Ledger."""
        due = [event for since_ns, event in self._held.values() if since_ns <= held_since_ns][:limit]
        posting = self._open(prices, now_ns)
        dispositions = [posting.confirm(event) for event in due]
        self._commit(posting, now_ns)
        return dispositions

    async def read(self, after: int, selection: UsageFilter, limit: int) -> Page:
        """See Ledger."""
        found = [entry for entry in self._entries[after:] if selection.matches(entry.row.event)]
        entries = tuple(found[:limit])
        return Page(entries, entries[-1].row.position if len(found) > limit else len(self._entries))

    async def sum(self, selection: UsageFilter, dimensions: Sequence[Dimension]) -> list[Total]:
        """See Ledger."""
        totals: dict[tuple[str, ...], Total] = {} if dimensions else {(): Total((), Usage(), 0)}
        for row in (entry.row for entry in self._entries if selection.matches(entry.row.event)):
            group = tuple(dimension.of(row.event) for dimension in dimensions)
            before = totals.get(group, Total(group, Usage(), 0))
            totals[group] = Total(group, before.usage + row.usage, before.cost_nano_usd + row.cost_nano_usd)
        kept = [total for group, total in sorted(totals.items()) if total.usage.attempts or not dimensions]
        if len(kept) > MAX_TOTALS:
            raise too_many_totals()
        return kept

    async def head(self) -> int:
        """See Ledger."""
        return len(self._entries)

    async def probe(self) -> None:
        """See Ledger."""

    def _open(self, prices: PriceTable, now_ns: int) -> Posting:
        held = {key: event for key, (_, event) in self._held.items()}
        return Posting(Opening(len(self._entries), self._hashes, self._entries, held), prices, now_ns)

    def _commit(self, posting: Posting, now_ns: int) -> None:
        self._entries += posting.entries
        self._hashes = posting.hashes
        for key in posting.released:
            self._held.pop(key, None)
        self._held |= {key: (now_ns, event) for key, event in posting.held.items()}
