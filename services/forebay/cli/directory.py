"""`forebay tenants`, `forebay plans` and `forebay status`: what an operator wants to see, asked of the services themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.cli import figures
from forebay.cli.health import service_health, valkey_health
from forebay.cli.mesh_state import ProcessState
from forebay.cli.operator import Operator
from forebay.cli.terminal import print_json, terminal
from forebay.client.client import mesh_errors
from forebay.config import TlsConfig
from forebay.errors import MeshError
from forebay.policy.messages import from_pb_limits, from_pb_tenant

Pool = scheduler_pb2.DescribePoolsResponse.Pool

CALL_WITHIN_S = 10.0
_HEALTH_STYLE = {
    "SERVING": "[green]serving[/]",
    "NOT_SERVING": "[yellow]not serving[/]",
    "UNREACHABLE": "[red]unreachable[/]",
}


async def list_tenants(operator: Operator, as_json: bool) -> None:
    """Prints the tenants that quota knows.

    Raises:
        MeshError: quota cannot be reached, or refuses.
    """
    rows = table("tenant", "name", "plan", "class", "weight", "limits", "models")
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(quota_pb2.ListTenantsRequest, stub.ListTenants):
            for message in page.tenants:
                if as_json:
                    print_json(message)
                    continue
                tenant = from_pb_tenant(message)
                rows.add_row(
                    tenant.tenant_id + (" [red](suspended)[/]" if tenant.suspended else ""),
                    escape(tenant.display_name),
                    tenant.plan,
                    tenant.service_class.name.lower(),
                    f"{tenant.weight_milli / 1000:g}",
                    figures.limits(tenant.limits),
                    escape(", ".join(tenant.models or ()) or ("all" if tenant.models is None else "none")),
                )
    if not as_json:
        terminal().print(rows)


async def list_plans(operator: Operator, as_json: bool) -> None:
    """Prints the plans that quota knows.

    Raises:
        MeshError: quota cannot be reached, or refuses.
    """
    rows = table("plan", "class", "weight", "limits", "per 1,000 tokens, where priced by plan")
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(quota_pb2.ListPlansRequest, stub.ListPlans):
            for plan in page.plans:
                if as_json:
                    print_json(plan)
                    continue
                rows.add_row(
                    plan.name,
                    quota_pb2.ServiceClass.Name(plan.service_class).removeprefix("SERVICE_CLASS_").lower(),
                    f"{plan.weight_milli / 1000:g}",
                    figures.limits(from_pb_limits(plan.limits)),
                    figures.usd(plan.nano_usd_per_million_tokens // 1000) if plan.nano_usd_per_million_tokens else "–",
                )
    if not as_json:
        terminal().print(rows)


async def show_status(operator: Operator) -> bool:
    """Prints every process with its health, and the scheduler's pools; returns whether all are healthy."""
    console = terminal()
    mesh = operator.mesh
    health = await asyncio.gather(*(_health(name, process, operator.tls) for name, process in mesh.processes.items()))
    leader, found = await leaders_pools(operator)
    rows = table("process", "address", "pid", "restarts", "health")
    for (name, process), state in zip(mesh.processes.items(), health, strict=True):
        rows.add_row(
            name,
            process.address,
            str(process.pid or "–"),
            str(process.restarts),
            _HEALTH_STYLE.get(state, state) + (", leads" if name == leader else ""),
        )
    console.print(rows)
    console.print()
    console.print(_pools(found) if leader else "[yellow]no scheduler leads now[/]")
    return all(state == "SERVING" for state in health)


async def _health(name: str, process: ProcessState, tls: TlsConfig) -> str:
    return await (valkey_health(process.address) if name == "valkey" else service_health(name, process.address, tls))


async def leaders_pools(operator: Operator, pool: str = "") -> tuple[str, list[Pool]]:
    """Returns which scheduler leads, and its pools, those of one name if that is given; "" while none answers as the leader."""
    for name in (name for name in operator.mesh.processes if name.startswith("scheduler-")):
        async with operator.channel(name) as channel:
            describe = scheduler_pb2_grpc.SchedulerServiceStub(channel).DescribePools
            try:
                return name, [
                    each
                    async for page in pages(partial(scheduler_pb2.DescribePoolsRequest, pool=pool), describe)
                    for each in page.pools
                ]
            except MeshError:
                continue
    return "", []


def _pools(found: list[Pool]) -> Table:
    rows = table("pool", "model", "worker / tenant", "in flight", "queued", "KV promised")
    for pool in found:
        place = (escape(pool.name) or "shared", escape(pool.model))
        for worker in pool.workers:
            promised = f"{worker.kv_tokens_promised:,} tokens"
            name = worker.worker.id + (" (draining)" if worker.draining else "")
            rows.add_row(*place, name, str(worker.in_flight), "", promised)
        for flow in pool.flows:
            rows.add_row(*place, flow.tenant_id, str(flow.in_flight), str(flow.queued), "")
    return rows


async def pages(request: Callable[..., Any], call: Callable[..., Awaitable[Any]]) -> Any:
    """Yields every page of a listing."""
    token = ""
    while True:
        with mesh_errors():
            page = await call(request(page_token=token), timeout=CALL_WITHIN_S)
        yield page
        token = page.next_page_token
        if not token:
            return


def table(*columns: str) -> Table:
    """Returns a table without lines."""
    rows = Table(box=None, pad_edge=False)
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows
