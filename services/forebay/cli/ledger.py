"""`forebay usage`: the ledger as rows that follow, and as sums. A tenant asks its router; an operator asks metering."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.cli.figures import duration, moment, usd
from forebay.cli.operator import Operator
from forebay.cli.terminal import terminal
from forebay.client import Code, ForebayClient, MeshError, UsageEntry, UsagePage, UsageTotal
from forebay.client.client import mesh_errors
from forebay.client.messages import from_pb_entry, from_pb_total, to_pb_dimensions

AGAIN_AFTER_S = 1.0
CALL_WITHIN_S = 10.0

Pages = Callable[[str], AsyncIterator[UsagePage]]


async def tail(pages: Pages, cursor: str, follow: bool, as_json: bool) -> None:
    """Prints rows from a cursor on; when following, takes the stream up again where it broke off.

    Raises:
        MeshError: the stream is refused, or breaks off and is not followed.
    """
    console = terminal()
    show = _json if as_json else _Rows(console).show
    while True:
        try:
            async for page in pages(cursor):
                for entry in page.entries:
                    show(entry)
                cursor = page.cursor or cursor
            if not follow:
                return
        except MeshError as error:
            if not follow or error.code is not Code.UNAVAILABLE:
                raise
            sys.stderr.write("the usage stream broke off; going on where it was\n")
        await asyncio.sleep(AGAIN_AFTER_S)


def tenant_pages(client: ForebayClient, follow: bool) -> Pages:
    """Returns the rows of the client's tenant."""
    return lambda cursor: client.usage(cursor, follow=follow)


def operator_pages(operator: Operator, follow: bool) -> Pages:
    """Returns the rows of all tenants, from metering itself."""

    async def pages(cursor: str) -> AsyncIterator[UsagePage]:
        async with operator.channel("metering") as channel:
            call = metering_pb2_grpc.MeteringServiceStub(channel).StreamUsage(
                metering_pb2.StreamUsageRequest(cursor=cursor, follow=follow)
            )
            with mesh_errors():
                async for page in call:
                    yield UsagePage(tuple(from_pb_entry(entry) for entry in page.entries), page.cursor)

    return pages


async def operator_sum(operator: Operator, by: Sequence[str]) -> list[UsageTotal]:
    """Returns the whole ledger added up, from metering itself.

    Raises:
        MeshError: metering cannot be reached, or refuses.
    """
    async with operator.channel("metering") as channel:
        request = metering_pb2.SumUsageRequest(group_by=to_pb_dimensions(by))
        with mesh_errors():
            response = await metering_pb2_grpc.MeteringServiceStub(channel).SumUsage(request, timeout=CALL_WITHIN_S)
    return [from_pb_total(total) for total in response.totals]


def print_totals(by: Sequence[str], totals: Sequence[UsageTotal], as_json: bool) -> None:
    """Prints sums as a table, or one JSON object a line."""
    if as_json:
        for total in totals:
            sys.stdout.write(json.dumps(asdict(total) | {"group": dict(zip(by, total.group, strict=True))}) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for name in by:
        table.add_column(name)
    for name in ("requests", "tokens in", "tokens out", "GPU", "cost"):
        table.add_column(name, justify="right")
    for total in totals:
        table.add_row(
            *total.group,
            f"{total.requests:,}",
            f"{total.prompt_tokens:,}",
            f"{total.completion_tokens:,}",
            duration(total.gpu_seconds),
            usd(total.cost_nano_usd),
        )
    terminal().print(table)


def _json(entry: UsageEntry) -> None:
    sys.stdout.write(json.dumps(asdict(entry)) + "\n")
    sys.stdout.flush()


class _Rows:
    """Rows of fixed columns: a table that is printed as it grows cannot know its widest cell."""

    _COLUMNS = (
        ("at", 8, "<"), ("tenant", 12, "<"), ("model", 12, "<"), ("in", 6, ">"), ("out", 6, ">"), ("GPU", 8, ">"),
        ("first", 8, ">"), ("cost", 13, ">"), ("outcome", 11, "<"), ("request", 32, "<"),
    )  # fmt: skip

    def __init__(self, console: Console) -> None:
        self._console = console
        self._headed = False

    def show(self, entry: UsageEntry) -> None:
        """Prints one row, and the head before the first."""
        if not self._headed:
            self._headed = True
            self._print([name for name, _, _ in self._COLUMNS], "bold")
        cells = [
            moment(entry.finished_at), entry.tenant, entry.model, str(entry.prompt_tokens), str(entry.completion_tokens),
            duration(entry.gpu_seconds), duration(entry.time_to_first_token), usd(entry.cost_nano_usd),
            "correction" if entry.correction else entry.outcome, entry.request_id,
        ]  # fmt: skip
        self._print(cells, None if entry.outcome == "completed" else "yellow")

    def _print(self, cells: Sequence[str], style: str | None) -> None:
        texts = [f"{cell:{side}{width}}" for cell, (_, width, side) in zip(cells, self._COLUMNS, strict=True)]
        self._console.print("  ".join(texts).rstrip(), style=style, markup=False)
