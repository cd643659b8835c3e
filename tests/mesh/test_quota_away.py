"""Quota is killed and stays away: who fails open goes on to the routers' parts, and afterwards everything is counted once."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.client import ForebayClient
from forebay.errors import MeshError
from forebay.testing.processes import MeshProcesses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("quota-away")]

PER_MINUTE, BEFORE = 20, 2
ENVIRONMENT = {
    "FOREBAY_WORKER_SIMULATED__SPEED": "2",  # a stream lives until its router is killed
    "FOREBAY_ROUTER_POLICY_HONOUR_S": "600",  # quota is away for as long as the test takes
    "FOREBAY_ROUTER_DEPENDENCY_WAIT_S": "2",  # who fails closed is soon refused
    "FOREBAY_QUOTA_LEASE_SECONDS": "5",  # what a dead router held is soon settled from the ledger
}
LONG = 4_000


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshProcesses]:
    with MeshProcesses(tmp_path / "data", routers=2, environment=ENVIRONMENT) as mesh:
        yield mesh


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await true():
            await asyncio.sleep(0.05)


async def tenant(mesh: MeshProcesses, name: str, loss_policy: quota_pb2.LossPolicy.ValueType) -> str:
    """Makes a tenant; returns a key of it."""
    limits = quota_pb2.Limits(requests_per_minute=PER_MINUTE, tokens_per_day=10**6)
    paths = ["loss_policy", "limits.requests_per_minute", "limits.tokens_per_day"]
    policy = quota_pb2.TenantPolicy(tenant_id=name, plan="enterprise", loss_policy=loss_policy, limits=limits)
    async with mesh.channel("quota") as channel:
        stub: Any = quota_pb2_grpc.TenantServiceStub(channel)
        await stub.CreateTenant(
            quota_pb2.CreateTenantRequest(
                request_id=secrets.token_hex(16), tenant=policy, overrides=FieldMask(paths=paths)
            )
        )
        key = quota_pb2.KeyPolicy(tenant_id=name)
        issued = await stub.IssueKey(quota_pb2.IssueKeyRequest(request_id=secrets.token_hex(16), key=key))
        return str(issued.secret)


async def outcome(client: ForebayClient) -> str:
    """Asks for an answer; returns `admitted`, or why not."""
    try:
        await client.generate("Is anybody there?", max_tokens=3)
    except MeshError as error:
        return f"{error.code.name} {error.reason}"
    return "admitted"


async def restart(mesh: MeshProcesses, name: str) -> None:
    """Kills a process and returns once the launcher has it back and everything is healthy."""
    before = mesh.kill(name)

    async def back() -> bool:
        return bool(mesh.pid(name) != before and mesh.state()["ready"])

    await until(back)


@asynccontextmanager
async def quota_away(mesh: MeshProcesses) -> Any:
    """Kills quota; the launcher starts it again in vain until the end of the block."""
    config = mesh.data / "config" / "quota.yaml"
    hidden = config.rename(config.with_suffix(".hidden"))
    before = mesh.kill("quota")
    try:
        yield
    finally:
        hidden.rename(config)

        async def ready() -> bool:
            return bool(mesh.pid("quota") != before and mesh.state()["ready"])

        await until(ready)


async def used(mesh: MeshProcesses, name: str) -> tuple[dict[str, int], int]:
    """Returns what the counters have of a tenant, and how many reservations live."""
    async with mesh.channel("quota") as channel:
        stub: Any = quota_pb2_grpc.QuotaServiceStub(channel)
        peeked = await stub.Peek(quota_pb2.PeekRequest(tenant_id=name))
        listed = await stub.ListReservations(quota_pb2.ListReservationsRequest(tenant_id=name))
        return {limit.limit: limit.used for limit in peeked.limits}, len(listed.reservations)


async def billed(client: ForebayClient) -> tuple[int, int]:
    """Returns how many rows the ledger has of the client's tenant, and their tokens."""
    entries = [entry async for page in client.usage() for entry in page.entries]
    return len(entries), sum(entry.prompt_tokens + entry.completion_tokens for entry in entries)


async def both_have_their_parts(mesh: MeshProcesses, *closed: ForebayClient) -> None:
    """Returns once both routers have been told that they have a half of the limits of the tenants that are there now."""
    await restart(mesh, "quota")

    async def told() -> bool:
        file = mesh.data / "quota" / "journal.shares"
        parts = file.exists() and json.loads(file.read_text()) == {"router-1": 2, "router-2": 2}
        # Who fails closed is admitted by quota alone, whose answer comes after its word.
        return parts and all([await outcome(client) == "admitted" for client in closed])

    await until(told)


async def test_nobody_is_counted_twice_nor_too_often(mesh: MeshProcesses) -> None:
    key = await tenant(mesh, "open", quota_pb2.LOSS_POLICY_FAIL_OPEN)
    closed_key = await tenant(mesh, "closed", quota_pb2.LOSS_POLICY_FAIL_CLOSED)
    async with (
        ForebayClient(mesh.router_address(0), key, timeout=120) as first,
        ForebayClient(mesh.router_address(1), key, timeout=120) as second,
        ForebayClient(mesh.router_address(0), closed_key, timeout=120) as closed,
        ForebayClient(mesh.router_address(1), closed_key, timeout=120) as also_closed,
    ):
        await both_have_their_parts(mesh, closed, also_closed)
        assert [await outcome(client) for client in (first, second)] == ["admitted"] * BEFORE

        began = time.monotonic()
        async with quota_away(mesh):
            half, refused = PER_MINUTE // 2, "RESOURCE_EXHAUSTED REQUESTS_PER_MINUTE"
            outcomes = [await outcome(second) for _ in range(half + 2)]
            assert outcomes == ["admitted"] * half + [refused] * 2
            assert await outcome(closed) == "UNAVAILABLE QUOTA_UNAVAILABLE"

            assert [await outcome(first) for _ in range(half - 1)] == ["admitted"] * (half - 1)
            stream = aiter(first.stream("Tell me everything.", max_tokens=LONG))
            await anext(stream)
            assert await outcome(first) == refused
            before = mesh.kill("router-1")
            with pytest.raises(MeshError):
                async for _ in stream:
                    pass

            async def refuses() -> bool:
                return mesh.pid("router-1") != before and (await outcome(first)).startswith("UNAVAILABLE")

            await until(refuses)

        async def agreed() -> bool:
            rows, tokens = await billed(second)
            counters, live = await used(mesh, "open")
            return rows == BEFORE + PER_MINUTE and counters["tokens_per_day"] == tokens and live == 0

        await until(agreed)
        counters, _ = await used(mesh, "open")
        outcome_now = await outcome(second)
        if time.monotonic() < began + 60:  # else the minute of what was admitted first may be over
            assert counters["requests_per_minute"] >= PER_MINUTE
            assert outcome_now == refused
        assert await outcome(also_closed) == "admitted"

        # Whoever starts anew has nothing more to say.
        for name in ("router-2", "router-1", "quota"):
            await restart(mesh, name)
        assert await agreed()
