"""The ledger in one SQLite file: WAL, and a commit returns only when the disk has it (synchronous=FULL).

One thread writes, on its own connection, so that commits never wait for one another's locks; readers have connections
of their own and see the last commit. Files of a killed process need no repair: SQLite drops the unfinished commit when
the file is next opened.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from forebay.config import ConfigError
from forebay.metering.domain.charge import Usage
from forebay.metering.domain.entry import LedgerEntry, day, read_event, unseal, write_event
from forebay.metering.domain.event import UsageEvent
from forebay.metering.domain.posting import Disposition, Opening, Posting, group
from forebay.metering.domain.prices import PriceTable
from forebay.metering.domain.selection import DAY_NS, MAX_TOTALS, Dimension, Total, UsageFilter, too_many_totals
from forebay.metering.ledger import Page, ledger_unavailable
from forebay.metering.sqlite_schema import migrate
from forebay.telemetry.logs import get_logger

READERS = 2
BUSY_TIMEOUT_S = 5.0

_GROUP = ("tenant_id", "key_id", "model", "day", "outcome")
_MEASURES = (
    "attempts",
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "gpu_time_ns",
    "cost_nano_usd",
)
_COLUMN = dict(zip(Dimension, _GROUP, strict=True))

_ENTRY = ("position", "request_id", "attempt", "corrects", "finished_at_ns", "body", "chain_hash", *_GROUP, *_MEASURES)
_INSERT_ENTRY = f"INSERT INTO entries ({', '.join(_ENTRY)}) VALUES ({', '.join('?' * len(_ENTRY))})"  # noqa: S608
_ADD_TO_TOTALS = (
    f"INSERT INTO totals VALUES ({', '.join('?' * len(_GROUP + _MEASURES))}) "  # noqa: S608
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in _MEASURES)}"
)
# The list comes as one JSON array, so that a batch of any size is one and the same prepared statement.
_IN = "IN (SELECT value FROM json_each(?))"
_SELECT_ENTRIES = f"SELECT body, chain_hash FROM entries WHERE request_id {_IN} ORDER BY position"  # noqa: S608
_SELECT_HELD = f"SELECT event FROM provisional WHERE request_id {_IN}"  # noqa: S608
_SELECT_HASHES = f"SELECT tenant_id, chain_hash FROM tenant_head WHERE tenant_id {_IN}"  # noqa: S608
_SELECT_DUE = "SELECT event FROM provisional WHERE held_since_ns <= ? ORDER BY held_since_ns LIMIT ?"

R = TypeVar("R")

log = get_logger("ledger")


class SqliteLedger:
    """A `Ledger` in an SQLite file; get one from `open_ledger`."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file.

        Raises:
            sqlite3.Error, ConfigError: it cannot be used.
        """
        self._db = _connect(path)
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigError("the file system has no shared memory for SQLite's WAL; put the ledger on a local disk")
        self._db.execute("PRAGMA synchronous = FULL")
        migrate(self._db)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-reader")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(READERS):
            self._idle.put(_connect(path))

    def close(self) -> None:
        """Lets the running commit finish and closes the file."""
        self._writer.shutdown()
        self._readers.shutdown()
        self._db.close()
        for _ in range(READERS):
            self._idle.get().close()

    async def append(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> list[Disposition]:
        """See Ledger."""

        def commit() -> list[Disposition]:
            with _transaction(self._db):
                posting = self._open(reports, prices, now_ns)
                dispositions = [posting.post(report) for report in reports]
                self._write(posting, now_ns)
            return dispositions

        return await _run(self._writer, commit)

    async def confirm(self, held_since_ns: int, prices: PriceTable, now_ns: int, limit: int) -> list[Disposition]:
        """See Ledger."""

        def commit() -> list[Disposition]:
            with _transaction(self._db):
                due = [read_event(event) for (event,) in self._db.execute(_SELECT_DUE, (held_since_ns, limit))]
                if not due:
                    return []
                posting = self._open(due, prices, now_ns)
                dispositions = [posting.confirm(report) for report in due]
                self._write(posting, now_ns)
            return dispositions

        return await _run(self._writer, commit)

    async def read(self, after: int, selection: UsageFilter, limit: int) -> Page:
        """See Ledger."""

        def query(db: sqlite3.Connection) -> Page:
            # The head first: what is committed between the two queries lies beyond it and is left for the next page.
            head = _head(db)
            where, values = _where(selection, paging=True)
            rows = db.execute(
                f"SELECT body, chain_hash FROM entries WHERE position > ? AND position <= ? AND {where}"  # noqa: S608
                " ORDER BY position LIMIT ?",
                (after, head, *values, limit + 1),
            ).fetchall()
            entries = tuple(unseal(*row) for row in rows[:limit])
            return Page(entries, entries[-1].row.position if len(rows) > limit else head)

        return await self._query(query)

    async def sum(self, selection: UsageFilter, dimensions: Sequence[Dimension]) -> list[Total]:
        """See Ledger."""

        def query(db: sqlite3.Connection) -> list[Total]:
            columns = [_COLUMN[dimension] for dimension in dimensions]
            sums = [f"COALESCE(SUM({measure}), 0)" for measure in _MEASURES]
            parts: list[str] = []
            values: list[object] = []
            for table, sign, part in _parts(selection):
                where, of_part = _where(part, days=table == "totals")
                measures = [f"{sign} * {measure} AS {measure}" for measure in _MEASURES]
                parts.append(f"SELECT {', '.join(columns + measures)} FROM {table} WHERE {where}")  # noqa: S608
                values += of_part
            sql = f"SELECT {', '.join(columns + sums)} FROM ({' UNION ALL '.join(parts)})"  # noqa: S608
            if columns:
                by = ", ".join(columns)
                sql += f" GROUP BY {by} HAVING SUM(attempts) > 0 ORDER BY {by} LIMIT {MAX_TOTALS + 1}"
            rows = db.execute(sql, values).fetchall()
            if len(rows) > MAX_TOTALS:
                raise too_many_totals()
            n = len(columns)
            return [Total(row[:n], Usage(*row[n:-1]), row[-1]) for row in rows]

        return await self._query(query)

    async def head(self) -> int:
        """See Ledger."""
        return await self._query(_head)

    async def probe(self) -> None:
        """See Ledger."""

        def commit() -> None:
            with _transaction(self._db):
                # There and back: SQLite writes nothing for a value that stays as it is.
                self._db.execute("UPDATE ledger_head SET position = position + 1")
                self._db.execute("UPDATE ledger_head SET position = position - 1")

        await _run(self._writer, commit)

    async def _query(self, query: Callable[[sqlite3.Connection], R]) -> R:
        def run() -> R:
            db = self._idle.get()
            try:
                return query(db)
            finally:
                self._idle.put(db)

        return await _run(self._readers, run)

    def _open(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> Posting:
        requests = (_json({report.request_id for report in reports}),)
        entries = [unseal(*row) for row in self._db.execute(_SELECT_ENTRIES, requests)]
        held = [read_event(event) for (event,) in self._db.execute(_SELECT_HELD, requests)]
        tenants = {report.tenant_id for report in reports} | {entry.row.event.tenant_id for entry in entries}
        hashes = self._db.execute(_SELECT_HASHES, (_json(tenants),))
        opening = Opening(_head(self._db), dict(hashes), entries, {event.key: event for event in held})
        return Posting(opening, prices, now_ns)

    def _write(self, posting: Posting, now_ns: int) -> None:
        db = self._db
        db.executemany(_INSERT_ENTRY, [_values(entry) for entry in posting.entries])
        db.executemany(_ADD_TO_TOTALS, [(*group(entry.row.event), *_measures(entry)) for entry in posting.entries])
        db.execute("UPDATE ledger_head SET position = ?", (posting.head,))
        db.executemany("INSERT OR REPLACE INTO tenant_head VALUES (?, ?)", posting.hashes.items())
        db.executemany(
            "DELETE FROM provisional WHERE request_id = ? AND attempt = ?",
            [(key.request_id, key.attempt) for key in posting.released],
        )
        db.executemany(
            "INSERT INTO provisional VALUES (?, ?, ?, ?)",
            [(key.request_id, key.attempt, now_ns, write_event(event)) for key, event in posting.held.items()],
        )


@asynccontextmanager
async def open_ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    """Opens the ledger at `path`, and makes it and its directory where there is none.

    Raises:
        ConfigError: it cannot be opened and written; the message says what to change.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = await asyncio.to_thread(SqliteLedger, path)
    except (OSError, sqlite3.Error, ConfigError) as error:
        raise ConfigError(f"ledger_path: {path} cannot be used as the ledger: {error}") from None
    try:
        yield ledger
    finally:
        await asyncio.to_thread(ledger.close)


def _connect(path: Path) -> sqlite3.Connection:
    # Each connection is used by one thread at a time, though not always by the same one.
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


async def _run(threads: ThreadPoolExecutor, work: Callable[[], R]) -> R:
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, work)
    except sqlite3.Error as error:
        log.error("the ledger's file failed", error=str(error), kind=type(error).__name__)
        raise ledger_unavailable() from None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk has ended the transaction already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _head(db: sqlite3.Connection) -> int:
    (position,) = db.execute("SELECT position FROM ledger_head").fetchone()
    return int(position)


def _values(entry: LedgerEntry) -> tuple[object, ...]:
    row, event = entry.row, entry.row.event
    return (
        row.position,
        event.request_id,
        event.attempt,
        row.corrects,
        event.finished_at_ns,
        entry.body,
        entry.chain_hash,
        *group(event),
        *_measures(entry),
    )


def _measures(entry: LedgerEntry) -> tuple[int, ...]:
    usage = entry.row.usage
    return (
        usage.attempts,
        usage.requests,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.gpu_time_ns,
        entry.row.cost_nano_usd,
    )


def _parts(selection: UsageFilter) -> list[tuple[str, int, UsageFilter]]:
    """Returns what a selection's rows add up from, table, sign and rows of each part, so that few rows are read.

    Whole days come from the totals. Of the days at either end, and of requests that are left out of the whole ones, the rows
    themselves are read.
    """
    from_ns, before_ns = selection.finished_from_ns or 0, selection.finished_before_ns
    begins_ns = -(-from_ns // DAY_NS) * DAY_NS
    ends_ns = None if before_ns is None else before_ns // DAY_NS * DAY_NS
    if selection.request_ids or (ends_ns is not None and begins_ns >= ends_ns):
        return [("entries", 1, selection)]
    days = replace(selection, except_request_ids=frozenset(), finished_from_ns=begins_ns, finished_before_ns=ends_ns)
    parts = [("totals", 1, days)]
    if from_ns < begins_ns:
        parts.append(("entries", 1, replace(selection, finished_before_ns=begins_ns)))
    if ends_ns != before_ns:
        parts.append(("entries", 1, replace(selection, finished_from_ns=ends_ns)))
    if selection.except_request_ids:
        parts.append(("entries", -1, replace(days, request_ids=selection.except_request_ids)))
    return parts


def _where(selection: UsageFilter, *, paging: bool = False, days: bool = False) -> tuple[str, list[object]]:
    """Returns a condition and its values; with `days`, of the daily totals.

    SQLite keeps no statistics here and would take an index that makes it sort every selected row for each page. A `+` before a
    column keeps it from that column's index, so that pages come by request, by one tenant, or in order of position.
    """
    conditions: list[str] = ["TRUE"]
    values: list[object] = []

    def add(column: str, test: str, value: object) -> None:
        by_request = column == "request_id"
        by_tenant = column == "tenant_id" and len(selection.tenant_ids) == 1
        useful = by_request if selection.request_ids else by_tenant or not paging
        conditions.append(f"{'' if useful else '+'}{column} {test}")
        values.append(value)

    chosen: tuple[tuple[str, Collection[str]], ...] = (
        ("tenant_id", selection.tenant_ids),
        ("key_id", selection.key_ids),
        ("model", selection.models),
        ("request_id", selection.request_ids),
        ("outcome", [outcome.value for outcome in selection.outcomes]),
    )
    for column, wanted in chosen:
        if len(wanted) == 1:
            add(column, "= ?", next(iter(wanted)))
        elif wanted:
            add(column, _IN, _json(wanted))
    if selection.except_request_ids:
        add("+request_id", f"NOT {_IN}", _json(selection.except_request_ids))
    # Totals have no times; where they are asked the bounds are whole days, and days sort as text.
    column, of = ("day", day) if days else ("finished_at_ns", int)
    if selection.finished_from_ns is not None:
        add(column, ">= ?", of(selection.finished_from_ns))
    if selection.finished_before_ns is not None:
        add(column, "< ?", of(selection.finished_before_ns))
    return " AND ".join(conditions), values


def _json(values: Iterable[str]) -> str:
    return json.dumps(list(values))
