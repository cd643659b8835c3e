"""`forebay tenants`, `forebay plans` and `forebay status`: what an operator wants to see, asked of the services themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rich.text import Text

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.cli import figures
from forebay.cli.health import service_health, valkey_eviction, valkey_health
from forebay.cli.mesh_state import ProcessState
from forebay.cli.operator import Operator
from forebay.cli.rows import Rows
from forebay.cli.terminal import print_json, terminal
from forebay.config import TlsConfig
from forebay.errors import MeshError
from forebay.policy.messages import from_pb_limits, from_pb_tenant

Pool = scheduler_pb2.DescribePoolsResponse.Pool

CALL_WITHIN_S = 10.0
SHARED = "shared"
"""What the pool is called that every model has; the contract has no name for it."""
_HEALTH_STYLE = {
    "SERVING": ("serving", "green"),
    "NOT_SERVING": ("not serving", "yellow"),
    "UNREACHABLE": ("unreachable", "red"),
}


async def list_tenants(operator: Operator, as_json: bool) -> None:
    """Prints the tenants that quota knows.

    Raises:
        MeshError: quota cannot be reached, or refuses.
    """
    rows = Rows("tenant", "name", "plan", "class", "weight", "limits", "models", texts=("name", "limits", "models"))
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(operator, "quota", quota_pb2.ListTenantsRequest, stub.ListTenants):
            for message in page.tenants:
                if as_json:
                    print_json(message)
                    continue
                tenant = from_pb_tenant(message)
                name = Text(tenant.tenant_id)
                rows.add(
                    name.append(" (suspended)", style="red") if tenant.suspended else name,
                    tenant.display_name,
                    tenant.plan,
                    tenant.service_class.name.lower(),
                    f"{tenant.weight_milli / 1000:g}",
                    figures.limits(tenant.limits),
                    figures.models(tenant.models),
                )
    if not as_json:
        rows.print("there are no tenants; `forebay tenants create` makes one")


async def list_plans(operator: Operator, as_json: bool) -> None:
    """Prints the plans that quota knows.

    Raises:
        MeshError: quota cannot be reached, or refuses.
    """
    rows = Rows("plan", "class", "weight", "limits", "USD per 1,000 tokens", texts=("limits",))
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(operator, "quota", quota_pb2.ListPlansRequest, stub.ListPlans):
            for plan in page.plans:
                if as_json:
                    print_json(plan)
                    continue
                priced = plan.nano_usd_per_million_tokens
                rows.add(
                    plan.name,
                    quota_pb2.ServiceClass.Name(plan.service_class).removeprefix("SERVICE_CLASS_").lower(),
                    f"{plan.weight_milli / 1000:g}",
                    figures.limits(from_pb_limits(plan.limits)),
                    figures.usd_per_1000(priced) if priced else "the model's price",
                )
    if not as_json:
        rows.print("there are no plans; `forebay plans update` makes one")


async def show_status(operator: Operator) -> bool:
    """Prints every process with its health, and the scheduler's pools; returns whether all are healthy."""
    console = terminal()
    mesh = operator.mesh
    health = await asyncio.gather(*(_health(name, process, operator.tls) for name, process in mesh.processes.items()))
    leader, found = await leaders_pools(operator)
    rows = Rows("process", "address", "pid", "restarts", "health", "last end")
    for (name, process), state in zip(mesh.processes.items(), health, strict=True):
        word, colour = _HEALTH_STYLE.get(state, (state, "yellow"))
        rows.add(
            name,
            process.address,
            str(process.pid or "–"),
            str(process.restarts),
            Text(word, style=colour).append(", leads" if name == leader else "", style="default"),
            process.last_end,
        )
    rows.print("the mesh has no process")
    console.print()
    if "valkey" in mesh.processes and (policy := await valkey_eviction(mesh.processes["valkey"].address)):
        console.print(
            f"valkey may evict keys ({policy}), and a tenant that loses one is refused for a minute; "
            "set its maxmemory-policy to noeviction",
            style="yellow",
        )
    if not leader:
        console.print(
            "no scheduler leads now, so no request starts; the logs of the schedulers say why", style="yellow"
        )
    else:
        _pools(found).print("no pool has a worker or a request")
    return all(state == "SERVING" for state in health)


async def _health(name: str, process: ProcessState, tls: TlsConfig) -> str:
    return await (valkey_health(process.address) if name == "valkey" else service_health(name, process.address, tls))


async def leaders_pools(operator: Operator) -> tuple[str, list[Pool]]:
    """Returns which scheduler leads, and its pools; "" while none answers as the leader."""
    for name in (name for name in operator.mesh.processes if name.startswith("scheduler-")):
        async with operator.channel(name) as channel:
            describe = scheduler_pb2_grpc.SchedulerServiceStub(channel).DescribePools
            try:
                return name, [
                    each
                    async for page in pages(operator, name, scheduler_pb2.DescribePoolsRequest, describe)
                    for each in page.pools
                ]
            except MeshError:
                continue
    return "", []


def pool_name(pool: Pool) -> str:
    """Returns what a pool is called."""
    return pool.name or SHARED


def _pools(found: list[Pool]) -> Rows:
    rows = Rows(
        "pool", "model", "worker or tenant", figures=("in flight", "queued", "KV tokens promised"), texts=("model",)
    )
    for pool in found:
        place = (pool_name(pool), pool.model)
        for worker in pool.workers:
            name = Text(worker.worker.id).append(" (draining)" if worker.draining else "", style="yellow")
            rows.add(*place, name, f"{worker.in_flight:,}", "", f"{worker.kv_tokens_promised:,}")
        for flow in pool.flows:
            rows.add(*place, flow.tenant_id, f"{flow.in_flight:,}", f"{flow.queued:,}", "")
    return rows


async def pages(
    operator: Operator, name: str, request: Callable[..., Any], call: Callable[..., Awaitable[Any]], **fields: Any
) -> AsyncIterator[Any]:
    """Yields every page of a listing.

    Args:
        operator: of the mesh.
        name: the process that is asked.
        request: makes the request for a page.
        call: the rpc.
        fields: what each request has besides its page.

    Raises:
        MeshError: the process cannot be reached, or refuses.
    """
    token = ""
    while True:
        with operator.errors(name):
            page = await call(request(page_token=token, **fields), timeout=CALL_WITHIN_S)
        yield page
        token = page.next_page_token
        if not token:
            return
