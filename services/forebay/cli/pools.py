"""`forebay pools`: pools, who waits in them, how full their workers are, and what each flow received and was owed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.cli.directory import Pool, leaders_pools
from forebay.cli.figures import duration
from forebay.cli.operator import Operator
from forebay.cli.terminal import print_json, terminal
from forebay.errors import Code, MeshError
from forebay.rpc.status import from_pb_duration

WATCH_EVERY_S = 1.0


async def show(operator: Operator, pool: str, as_json: bool) -> None:
    """Prints the pools once.

    Raises:
        MeshError: no scheduler leads.
    """
    found = await describe(operator, pool)
    if as_json:
        for each in found:
            print_json(each)
    else:
        terminal().print(render(found))


async def watch(operator: Operator, pool: str, as_json: bool) -> None:
    """Shows the pools again and again, until cancelled; on a terminal, a leader that is lost is waited for."""
    while as_json:
        await show(operator, pool, as_json)
        await asyncio.sleep(WATCH_EVERY_S)
    with Live(console=terminal(), auto_refresh=False, screen=False) as live:
        while True:
            try:
                live.update(render(await describe(operator, pool)), refresh=True)
            except MeshError as error:
                live.update(Text(error.message), refresh=True)
            await asyncio.sleep(WATCH_EVERY_S)


async def describe(operator: Operator, pool: str) -> list[Pool]:
    """Returns the leader's pools; those of one name unless it is empty.

    Raises:
        MeshError: no scheduler leads.
    """
    leader, found = await leaders_pools(operator, pool)
    if not leader:
        raise MeshError(Code.UNAVAILABLE, "NO_LEADER", "no scheduler leads now; `forebay status` shows which run")
    return found


def render(found: Iterable[Pool]) -> Group:
    """Returns the pools as tables, each below a line about the pool itself."""
    parts: list[Text | Table] = []
    for pool in found:
        if parts:
            parts.append(Text(""))
        parts.append(_headline(pool))
        if pool.workers:
            parts += [Text(""), _workers(pool)]
        if pool.flows:
            parts += [Text(""), _flows(pool)]
    return Group(*(parts or [Text("no pool has a worker or a request")]))


def _headline(pool: Pool) -> Text:
    waits = ", ".join(
        f"{_class(each.service_class)} {each.queued:,} (oldest {duration(from_pb_duration(each.oldest))})"
        for each in pool.waiting
    )
    facts = [
        f"model {pool.model}",
        f"waiting: {waits}" if waits else "nothing waits",
        f"fairness {pool.fairness:.3f}",
        *(["lends its idle workers"] if pool.lends else []),
        *([f"borrows from {', '.join(pool.lenders)}"] if pool.lenders else []),
    ]
    return Text.assemble((f"pool {pool.name or '(shared)'}", "bold"), "  ", " · ".join(facts))


def _workers(pool: Pool) -> Table:
    rows = _table(
        ["worker"], ["in flight", "KV used", "KV at peak", "alpha", "lowered", "lent", "preemptions"], ["state"]
    )
    for worker in pool.workers:
        capacity = worker.capacity
        rows.add_row(
            worker.worker.id,
            f"{worker.in_flight:,} / {capacity.max_num_seqs:,}",
            _percent(worker.engine.kv_tokens_used, capacity.kv_tokens),
            _percent(worker.kv_tokens_expected, capacity.kv_tokens),
            f"{worker.alpha:.3f}",
            f"{worker.alpha_lowered:.3f}",
            _percent(worker.kv_tokens_lent, capacity.kv_tokens),
            f"{worker.engine.preemptions:,}",
            _state(worker),
        )
    return rows


def _flows(pool: Pool) -> Table:
    rows = _table(
        ["class", "tenant", "key"],
        ["weight", "queued", "in flight", "share", "received", "owed", "rec./owed", "counter"],
    )
    for flow in pool.flows:
        rows.add_row(
            _class(flow.service_class),
            flow.tenant_id,
            escape(flow.key_id) or "–",
            f"{flow.weight_milli / 1000:g}",
            f"{flow.queued:,}",
            f"{flow.in_flight:,}",
            f"{flow.share:.1%}",
            f"{flow.service_tenths / 10:,.0f}",
            f"{flow.owed_tenths / 10:,.0f}",
            f"{flow.service_tenths / flow.owed_tenths:.2f}" if flow.owed_tenths else "–",
            f"{flow.virtual_counter / 10:,.0f}",
        )
    return rows


def _state(worker: scheduler_pb2.DescribePoolsResponse.Worker) -> str:
    if not worker.engine.healthy:
        return "[red]away[/]"
    adapters = f"adapters {escape(', '.join(worker.engine.adapters))}" if worker.engine.adapters else ""
    return ", ".join(part for part in ("[yellow]draining[/]" if worker.draining else "", adapters) if part) or "serving"


def _table(names: list[str], figures: list[str], more: Iterable[str] = ()) -> Table:
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        rows.add_column(name, style="cyan", header_style="dim")
    for name in figures:
        rows.add_column(name, justify="right", header_style="dim")
    for name in more:
        rows.add_column(name, header_style="dim")
    return rows


def _class(service_class: quota_pb2.ServiceClass.ValueType) -> str:
    return quota_pb2.ServiceClass.Name(service_class).removeprefix("SERVICE_CLASS_").lower()


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
