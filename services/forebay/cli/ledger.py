"""`forebay usage`: the ledger as rows that follow, and as sums. A tenant asks its router; an operator asks metering."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.cli.access import Access
from forebay.cli.figures import duration, moment, usd, usd_within
from forebay.cli.operator import Operator
from forebay.cli.rows import Rows
from forebay.cli.terminal import terminal
from forebay.client import Code, ForebayClient, MeshError, UsageEntry, UsagePage, UsageTotal
from forebay.client.messages import from_pb_entry, from_pb_total, to_pb_dimensions, to_pb_filter

AGAIN_AFTER_S = 1.0
CALL_WITHIN_S = 10.0
# Columns of a terminal from which on a row of the ledger has room for all that it says.
WIDE = 140


@dataclass(frozen=True, slots=True)
class Start:
    """Where rows begin: after a cursor ("" for the ledger's first row), or with what ended at `since` or later.

    Attributes:
        since: seconds since the epoch; None for what the cursor says.
    """

    cursor: str = ""
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows are printed.

    Attributes:
        request_ids: only rows of these requests; None for all.
        follow: whether it goes on with what is yet to come.
    """

    start: Start
    request_ids: tuple[str, ...] | None = None
    follow: bool = False


Pages = Callable[[Query], AsyncIterator[UsagePage]]


async def tail(pages: Pages, query: Query, as_json: bool, *, tenants: bool = False) -> None:
    """Prints rows; when following, takes the stream up again where it broke off.

    Args:
        pages: opens the stream of a query.
        query: which rows.
        as_json: as JSON, one object a line.
        tenants: whether the rows are of more than one tenant.

    Raises:
        MeshError: the stream is refused, or breaks off and is not followed.
    """
    reading = _Reading(pages, _json if as_json else _Rows(terminal(), tenants).show, patient=query.follow)
    if query.follow and query.start.since is not None:
        # To the ledger's end first, and then without the time: a later row may correct one that ended before it.
        cursor = await reading.read(replace(query, follow=False))
        if not reading.shown:
            _note("no rows in that time; waiting for the next. `--from beginning` shows all that were")
        query = replace(query, start=Start(cursor or "now"))
    await reading.read(query)
    if not reading.shown and not query.follow:
        _note("no rows yet" if query.start == Start() else "no rows there; `--from beginning` shows all that were")


class _Reading:
    """Reads streams of rows, and takes one up again where it broke off."""

    def __init__(self, pages: Pages, show: Callable[[UsageEntry], None], *, patient: bool) -> None:
        """Hands rows to `show`; waits for a lost stream if `patient`."""
        self._pages = pages
        self._show = show
        self._patient = patient
        self.shown = 0

    async def read(self, query: Query) -> str:
        """Reads to the end of the query, which one that follows does not have; returns the cursor after the last row.

        Raises:
            MeshError: the stream is refused, or breaks off and is not waited for.
        """
        lost = False
        while True:
            try:
                async for page in self._pages(query):
                    lost = False
                    for entry in page.entries:
                        self._show(entry)
                    self.shown += len(page.entries)
                    if page.cursor:
                        query = replace(query, start=replace(query.start, cursor=page.cursor))
                if not query.follow:
                    return query.start.cursor
            except MeshError as error:
                if not self._patient or error.code is not Code.UNAVAILABLE:
                    raise
                if not lost:
                    lost = True
                    _note("the usage stream broke off; waiting for it, to go on where it was")
            await asyncio.sleep(AGAIN_AFTER_S)


async def tail_own(access: Access, query: Query, as_json: bool) -> None:
    """Prints rows of the caller's tenant, from a router; errors as of `tail`."""
    async with access.client() as client:
        await tail(own_pages(client), query, as_json)


async def tail_all(operator: Operator, query: Query, as_json: bool) -> None:
    """Prints rows of all tenants, from metering itself; errors as of `tail`."""
    await tail(partial(_all_pages, operator), query, as_json, tenants=True)


def own_pages(client: ForebayClient) -> Pages:
    """Returns what streams the rows of the client's tenant."""
    return lambda query: client.usage(
        query.start.cursor, request_ids=query.request_ids, since=query.start.since, follow=query.follow
    )


async def _all_pages(operator: Operator, query: Query) -> AsyncIterator[UsagePage]:
    request = metering_pb2.StreamUsageRequest(
        cursor=query.start.cursor, filter=to_pb_filter(query.request_ids or (), query.start.since), follow=query.follow
    )
    async with operator.channel("metering") as channel:
        with operator.errors("metering"):
            async for page in metering_pb2_grpc.MeteringServiceStub(channel).StreamUsage(request):
                yield UsagePage(tuple(from_pb_entry(entry) for entry in page.entries), page.cursor)


async def sum_own(access: Access, by: Sequence[str]) -> list[UsageTotal]:
    """Returns the ledger of the caller's tenant added up, from a router.

    Raises:
        MeshError: the router cannot be reached, or refuses.
    """
    async with access.client() as client:
        return await client.sum_usage(by)


async def sum_all(operator: Operator, by: Sequence[str]) -> list[UsageTotal]:
    """Returns the whole ledger added up, from metering itself.

    Raises:
        MeshError: metering cannot be reached, or refuses.
    """
    async with operator.channel("metering") as channel:
        request = metering_pb2.SumUsageRequest(group_by=to_pb_dimensions(by))
        with operator.errors("metering"):
            response = await metering_pb2_grpc.MeteringServiceStub(channel).SumUsage(request, timeout=CALL_WITHIN_S)
    return [from_pb_total(total) for total in response.totals]


def print_totals(by: Sequence[str], totals: Sequence[UsageTotal], as_json: bool) -> None:
    """Prints sums as a table, or one JSON object a line."""
    if as_json:
        for total in totals:
            sys.stdout.write(json.dumps(asdict(total) | {"group": dict(zip(by, total.group, strict=True))}) + "\n")
        return
    rows = Rows(*by, figures=("requests", "tokens in", "tokens out", "GPU", "cost"))
    for total in totals:
        rows.add(
            *total.group,
            f"{total.requests:,}",
            f"{total.prompt_tokens:,}",
            f"{total.completion_tokens:,}",
            duration(total.gpu_seconds),
            usd(total.cost_nano_usd),
        )
    rows.print("nothing was used")


def _note(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _json(entry: UsageEntry) -> None:
    sys.stdout.write(json.dumps(asdict(entry)) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    width: int
    of: Callable[[UsageEntry, int], str]
    right: bool = False


def _outcome(entry: UsageEntry, width: int) -> str:
    return "correction" if entry.correction else entry.outcome


_AT = "at (UTC)"
_TENANT = _Column("tenant", 12, lambda entry, _: entry.tenant)
_NARROW = (
    _Column(_AT, 14, lambda entry, _: moment(entry.finished_at, year=False)),
    _TENANT,
    _Column("model", 14, lambda entry, _: entry.model),
    _Column("in", 6, lambda entry, _: str(entry.prompt_tokens), right=True),
    _Column("out", 6, lambda entry, _: str(entry.completion_tokens), right=True),
    _Column("cost", 12, lambda entry, width: usd_within(entry.cost_nano_usd, width), right=True),
    _Column("outcome", 10, _outcome),
)
_WIDE = (
    _Column(_AT, 19, lambda entry, _: moment(entry.finished_at)),
    _TENANT,
    _Column("model", 14, lambda entry, _: entry.model),
    _Column("in", 6, lambda entry, _: str(entry.prompt_tokens), right=True),
    _Column("out", 6, lambda entry, _: str(entry.completion_tokens), right=True),
    _Column("GPU", 8, lambda entry, _: duration(entry.gpu_seconds), right=True),
    _Column("first", 8, lambda entry, _: duration(entry.time_to_first_token), right=True),
    _Column("cost", 13, lambda entry, _: usd(entry.cost_nano_usd), right=True),
    _Column("outcome", 14, _outcome),
    _Column("request", 32, lambda entry, _: entry.request_id),
)


class _Rows:
    """Rows of fixed columns: a table that is printed as it grows cannot know its widest cell.

    A narrow terminal gets fewer columns, and names that are cut; a wide one and a file get everything whole.
    """

    def __init__(self, console: Console, tenants: bool) -> None:
        self._console = console
        self._wide = console.width >= WIDE
        self._columns = _WIDE if self._wide else [each for each in _NARROW if tenants or each is not _TENANT]
        self._headed = False

    def show(self, entry: UsageEntry) -> None:
        """Prints one row, and the head before the first."""
        if not self._headed:
            self._headed = True
            self._print([column.name for column in self._columns], "bold")
        cells = [column.of(entry, column.width) for column in self._columns]
        self._print(cells, None if entry.outcome == "completed" else "yellow")

    def _print(self, cells: Sequence[str], style: str | None) -> None:
        texts = []
        for column, cell in zip(self._columns, cells, strict=True):
            fits = cell if self._wide or cell_len(cell) <= column.width else set_cell_size(cell, column.width - 1) + "…"
            padding = " " * (column.width - cell_len(fits))
            texts.append(padding + fits if column.right else fits + padding)
        self._console.print(
            " ".join(texts).rstrip() if not self._wide else "  ".join(texts).rstrip(), style=style, markup=False
        )
