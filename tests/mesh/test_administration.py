"""What an administrator changes takes effect on a running router, and nothing is restarted for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.client import ForebayClient
from forebay.errors import MeshError
from forebay.testing.processes import MeshProcesses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mesh")]

# Far more tokens than a stream has when it is aborted.
LONG = 8_000


@pytest.fixture
async def admin(mesh: MeshProcesses) -> AsyncIterator[Any]:
    async with mesh.channel("quota") as channel:
        yield quota_pb2_grpc.TenantServiceStub(channel)


@pytest.fixture
async def tenant_id(admin: Any) -> AsyncIterator[str]:
    """A tenant for one test."""
    tenant_id = f"t-{secrets.token_hex(4)}"
    tenant = quota_pb2.TenantPolicy(tenant_id=tenant_id, plan="enterprise")
    await admin.CreateTenant(quota_pb2.CreateTenantRequest(request_id=secrets.token_hex(16), tenant=tenant))
    yield tenant_id
    await admin.DeleteTenant(quota_pb2.DeleteTenantRequest(request_id=secrets.token_hex(16), tenant_id=tenant_id))


@pytest.fixture
async def issued(admin: Any, tenant_id: str) -> Any:
    key = quota_pb2.KeyPolicy(tenant_id=tenant_id)
    return await admin.IssueKey(quota_pb2.IssueKeyRequest(request_id=secrets.token_hex(16), key=key))


@pytest.fixture
async def client(mesh: MeshProcesses, issued: Any) -> AsyncIterator[ForebayClient]:
    """A client with the tenant's key, once the router knows it."""
    async with ForebayClient(mesh.router_address(), issued.secret, timeout=120) as client:
        await until(client, lambda error: error is None)
        yield client


async def until(client: ForebayClient, done: Callable[[MeshError | None], bool]) -> None:
    """Asks again and again until the answer, or its error, is as it is to be."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        error = None
        try:
            await client.generate("Are you there?", max_tokens=1)
        except MeshError as refusal:
            error = refusal
        if done(error):
            return
    raise AssertionError("it did not take effect within 60 s")


async def milliseconds(what: str, change: Awaitable[Any], effect: Awaitable[Any]) -> None:
    began = time.perf_counter()
    await change
    await effect
    print(f"{what} took effect after {(time.perf_counter() - began) * 1000:.1f} ms")


async def test_a_revoked_key_is_refused(mesh: MeshProcesses, admin: Any, issued: Any, client: ForebayClient) -> None:
    pids = {name: mesh.pid(name) for name in mesh.state()["processes"]}
    request = quota_pb2.RevokeKeyRequest(request_id=secrets.token_hex(16), key_id=issued.key.policy.key_id)
    refused = until(client, lambda error: error is not None and error.code.name == "UNAUTHENTICATED")
    await milliseconds("revoking a key", admin.RevokeKey(request), refused)
    assert {name: mesh.pid(name) for name in pids} == pids


async def test_a_lowered_limit_holds(admin: Any, tenant_id: str, client: ForebayClient) -> None:
    request = quota_pb2.UpdateTenantRequest(
        request_id=secrets.token_hex(16),
        tenant=quota_pb2.TenantPolicy(tenant_id=tenant_id, limits=quota_pb2.Limits(requests_per_minute=1)),
        update_mask=FieldMask(paths=["limits.requests_per_minute"]),
    )
    refused = until(client, lambda error: error is not None and error.code.name == "RESOURCE_EXHAUSTED")
    await milliseconds("lowering a limit", admin.UpdateTenant(request), refused)


async def test_a_suspended_tenant_is_refused_and_what_runs_is_aborted(
    admin: Any, tenant_id: str, client: ForebayClient
) -> None:
    stream = aiter(client.stream("Tell me everything.", max_tokens=LONG, ignore_eos=True))
    await anext(stream)

    async def aborted() -> None:
        with pytest.raises(MeshError) as caught:
            async for _ in stream:
                pass
        assert caught.value.reason == "TENANT_SUSPENDED"

    request = quota_pb2.SuspendTenantRequest(request_id=secrets.token_hex(16), tenant_id=tenant_id)
    await milliseconds("suspending a tenant", admin.SuspendTenant(request), aborted())
    with pytest.raises(MeshError) as caught:
        await client.generate("And now?", max_tokens=1)
    assert caught.value.reason == "TENANT_SUSPENDED"
    resume = quota_pb2.ResumeTenantRequest(request_id=secrets.token_hex(16), tenant_id=tenant_id)
    resumed = until(client, lambda error: error is None)
    await milliseconds("resuming a tenant", admin.ResumeTenant(resume), resumed)


async def test_a_viewer_may_look_and_not_change(mesh: MeshProcesses, tenant_id: str) -> None:
    async with mesh.channel("quota", "viewer") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        await stub.GetTenant(quota_pb2.GetTenantRequest(tenant_id=tenant_id))
        with pytest.raises(Exception, match="the role viewer may not call SuspendTenant"):
            await stub.SuspendTenant(
                quota_pb2.SuspendTenantRequest(request_id=secrets.token_hex(16), tenant_id=tenant_id)
            )
        events = await stub.ListAuditEvents(quota_pb2.ListAuditEventsRequest(tenant_id=tenant_id, refused_only=True))
        assert [event.action for event in events.events] == ["SuspendTenant"]


async def test_an_empty_list_of_models_shuts_a_tenant_out_and_unknown_names_are_warned_of(
    client: ForebayClient, admin: Any, tenant_id: str
) -> None:
    (model,) = [model.name for model in await client.list_models()]

    async def use(names: list[str] | None, pool: str = "") -> dict[str, str]:
        """Gives the tenant a list of models, or none; returns what quota warns of."""
        scope = None if names is None else quota_pb2.ModelScope(models=names)
        request = quota_pb2.UpdateTenantRequest(
            request_id=secrets.token_hex(16),
            tenant=quota_pb2.TenantPolicy(tenant_id=tenant_id, model_scope=scope, pool=pool),
            update_mask=FieldMask(paths=["model_scope", "pool"]),
        )
        return {warning.field: warning.description for warning in (await admin.UpdateTenant(request)).warnings}

    assert await use([]) == {}
    await until(client, lambda error: error is not None and error.reason == "MODEL_NOT_FOUND")
    assert await client.list_models() == []
    assert await use([model]) == {}
    await until(client, lambda error: error is None)
    warnings = await use([model, "gpt-4"], pool="gold")
    assert warnings["tenant.models"].startswith("no connected router serves the model 'gpt-4'")
    assert warnings["tenant.pool"].startswith("no connected worker serves the pool 'gold'")
    assert await use(None) == {}
    await until(client, lambda error: error is None)
