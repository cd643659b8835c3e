"""How long it takes until what an administrator changes holds on every running router; a part of `make bench-quota`.

Two routers serve a mesh of processes. Each is asked by a client of its own, again and again without a pause, from before the
change on. A time is that from sending the change to the end of the first answer that shows it, on the router that shows it last.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.client import Delta, ForebayClient
from forebay.errors import MeshError
from forebay.testing.processes import MeshProcesses

ROUTERS, TRIES = 2, 7
GIVE_UP_S = 10.0
# Far more tokens than a stream has when it is aborted.
LONG = 4_000
# An engine twenty times as fast as a real one: what is measured is not its steps. No limit but the tenant's may refuse.
FAST = {"FOREBAY_WORKER_SIMULATED__SPEED": "20", "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "0"}


class Tenant:
    """A tenant for one measurement, and a client of it on each router."""

    def __init__(self, stub: Any, tenant_id: str, key_id: str, clients: list[ForebayClient]) -> None:
        self._stub = stub
        self.tenant_id = tenant_id
        self.key_id = key_id
        self.clients = clients

    def revoke_key(self) -> Awaitable[Any]:
        return self._stub.RevokeKey(quota_pb2.RevokeKeyRequest(request_id=some_id(), key_id=self.key_id))

    def lower_limit(self) -> Awaitable[Any]:
        policy = quota_pb2.TenantPolicy(tenant_id=self.tenant_id, limits=quota_pb2.Limits(requests_per_minute=1))
        mask = FieldMask(paths=["limits.requests_per_minute"])
        request = quota_pb2.UpdateTenantRequest(request_id=some_id(), tenant=policy, update_mask=mask)
        return self._stub.UpdateTenant(request)

    def suspend(self) -> Awaitable[Any]:
        return self._stub.SuspendTenant(quota_pb2.SuspendTenantRequest(request_id=some_id(), tenant_id=self.tenant_id))


def some_id() -> str:
    return secrets.token_hex(16)


@asynccontextmanager
async def tenant(mesh: MeshProcesses) -> AsyncIterator[Tenant]:
    """Makes a tenant; yields it once every router knows its key."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(mesh.channel("quota"))
        stub, tenant_id = quota_pb2_grpc.TenantServiceStub(channel), f"t-{secrets.token_hex(4)}"
        policy = quota_pb2.TenantPolicy(tenant_id=tenant_id, plan="enterprise")
        await stub.CreateTenant(quota_pb2.CreateTenantRequest(request_id=some_id(), tenant=policy))
        key = quota_pb2.KeyPolicy(tenant_id=tenant_id)
        issued = await stub.IssueKey(quota_pb2.IssueKeyRequest(request_id=some_id(), key=key))
        clients = [
            await stack.enter_async_context(ForebayClient(mesh.router_address(number), issued.secret, timeout=30))
            for number in range(ROUTERS)
        ]
        await asyncio.gather(*(until(client, "") for client in clients))
        yield Tenant(stub, tenant_id, issued.key.policy.key_id, clients)
        await stub.DeleteTenant(quota_pb2.DeleteTenantRequest(request_id=some_id(), tenant_id=tenant_id))


async def until(client: ForebayClient, reason: str) -> None:
    """Asks again and again until a request is refused for this reason, or goes through for none."""
    async with asyncio.timeout(GIVE_UP_S):
        while await refusal(client) != reason:
            pass


async def refusal(client: ForebayClient) -> str:
    """Returns why a small request is refused; nothing when it is not."""
    try:
        await client.generate("Are you there?", max_tokens=1)
    except MeshError as error:
        return error.reason
    return ""


async def until_aborted(stream: AsyncIterator[Delta]) -> None:
    """Reads until the stream ends because its tenant is suspended."""
    async with asyncio.timeout(GIVE_UP_S):
        try:
            async for _ in stream:
                pass
        except MeshError as error:
            if error.reason == "TENANT_SUSPENDED":
                return
            raise
    raise RuntimeError("the stream came to its own end")


async def timed(change: Awaitable[Any], effects: list[Coroutine[Any, Any, None]]) -> float:
    """Returns how many ms after the change is sent the last of its effects shows."""
    shown = asyncio.gather(*effects)
    began = time.perf_counter()
    await change
    await shown
    return (time.perf_counter() - began) * 1_000


async def revoke(mesh: MeshProcesses) -> float:
    async with tenant(mesh) as each:
        return await timed(each.revoke_key(), [until(client, "UNKNOWN_KEY") for client in each.clients])


async def lower(mesh: MeshProcesses) -> float:
    async with tenant(mesh) as each:
        return await timed(each.lower_limit(), [until(client, "REQUESTS_PER_MINUTE") for client in each.clients])


async def suspend(mesh: MeshProcesses) -> float:
    async with tenant(mesh) as each:
        streams = [aiter(client.stream("All of it.", max_tokens=LONG, ignore_eos=True)) for client in each.clients]
        for stream in streams:
            await anext(stream)
        return await timed(each.suspend(), [until_aborted(stream) for stream in streams])


async def measure() -> dict[str, float]:
    """Prints the table; returns the median of each time."""
    kinds: dict[str, Callable[[MeshProcesses], Awaitable[float]]] = {
        "revoke_ms": revoke,
        "lower_ms": lower,
        "suspend_ms": suspend,
    }
    result = {}
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder,
        MeshProcesses(Path(folder) / "data", routers=ROUTERS, environment=FAST) as mesh,
    ):
        print(f"\nuntil {ROUTERS} running routers act on a change, {TRIES} tries\n{'':<20}{'median':>10}{'most':>10}")
        for name, kind in kinds.items():
            times = [await kind(mesh) for _ in range(TRIES)]
            result[name] = round(statistics.median(times), 1)
            print(f"{name:<20}{result[name]:>10}{max(times):>10.1f}")
    return result
