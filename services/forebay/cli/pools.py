"""`forebay pools`: pools, who waits in them, how full their workers are, and what each flow received and was owed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.cli.directory import Pool, leaders_pools, pool_name
from forebay.cli.figures import duration
from forebay.cli.operator import Operator
from forebay.cli.rows import Rows
from forebay.cli.terminal import as_json as as_json_of
from forebay.cli.terminal import print_json, terminal
from forebay.errors import Code, MeshError
from forebay.rpc.status import from_pb_duration

WATCH_EVERY_S = 1.0


async def show(operator: Operator, pool: str, as_json: bool) -> None:
    """Prints the pools once.

    Raises:
        MeshError: no scheduler leads, or there is no pool of that name.
    """
    found = await describe(operator, pool)
    if as_json:
        for each in found:
            print_json(described(each))
    else:
        terminal().print(render(found))


async def watch(operator: Operator, pool: str, as_json: bool) -> None:
    """Shows the pools again and again, until cancelled; a leader that is lost is waited for.

    Raises:
        MeshError: there is no pool of that name.
    """
    await describe(operator, pool)
    with Live(console=terminal(), auto_refresh=False, screen=False) if not as_json else nullcontext() as live:
        while True:
            try:
                found = await describe(operator, pool)
            except MeshError as error:
                if live is None:
                    sys.stderr.write(f"{error.message}\n")
                else:
                    live.update(Text(error.message), refresh=True)
            else:
                if live is not None:
                    live.update(render(found), refresh=True)
                for each in found if live is None else ():
                    print_json(described(each))
            await asyncio.sleep(WATCH_EVERY_S)


async def describe(operator: Operator, pool: str) -> list[Pool]:
    """Returns the leader's pools; those of one name unless it is empty.

    Raises:
        MeshError: no scheduler leads, or there is no pool of that name.
    """
    leader, found = await leaders_pools(operator)
    if not leader:
        raise MeshError(Code.UNAVAILABLE, "NO_LEADER", "no scheduler leads now; `forebay status` shows which run")
    named = [each for each in found if not pool or pool_name(each) == pool]
    if pool and not named:
        names = ", ".join(sorted({pool_name(each) for each in found})) or "none"
        raise MeshError(Code.NOT_FOUND, "NO_POOL", f"there is no pool {pool!r}; there are: {names}")
    return named


def described(pool: Pool) -> dict[str, Any]:
    """Returns a pool as JSON has it, with the name that people know it by."""
    return as_json_of(pool) | {"name": pool_name(pool)}


def render(found: Iterable[Pool]) -> Group:
    """Returns the pools as tables, each below a line about the pool itself."""
    parts: list[Text | Rows] = []
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
    return Text.assemble((f"pool {pool_name(pool)}", "bold"), "  ", " · ".join(facts), overflow="fold", no_wrap=False)


def _workers(pool: Pool) -> Rows:
    rows = Rows(
        "worker",
        figures=("in flight", "KV used", "KV at peak", "alpha", "lowered", "lent", "preemptions"),
        more=("state",),
        texts=("state",),
    )
    for worker in pool.workers:
        capacity = worker.capacity
        rows.add(
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


def _flows(pool: Pool) -> Rows:
    rows = Rows(
        "class", "tenant", "key",
        figures=("weight", "queued", "in flight", "share", "received", "owed", "rec./owed", "counter"),
    )  # fmt: skip
    for flow in pool.flows:
        rows.add(
            _class(flow.service_class),
            flow.tenant_id,
            flow.key_id or "–",
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


def _state(worker: scheduler_pb2.DescribePoolsResponse.Worker) -> Text:
    if not worker.engine.healthy:
        return Text("away", style="red")
    parts = [Text("draining", style="yellow")] if worker.draining else []
    if worker.engine.adapters:
        parts.append(Text(f"adapters {', '.join(worker.engine.adapters)}"))
    return Text(", ").join(parts) if parts else Text("serving")


def _class(service_class: quota_pb2.ServiceClass.ValueType) -> str:
    return quota_pb2.ServiceClass.Name(service_class).removeprefix("SERVICE_CLASS_").lower()


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
