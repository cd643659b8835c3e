"""Calls that are refused before their handler, on their way into the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.cli.certificates import certify
from forebay.config import TlsConfig
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.quota.domain.audit import Action, unbroken
from forebay.quota.policy_store import InMemoryPolicyStore
from forebay.quota.refused_calls import GATHER_S, MAX_KINDS, RefusedCalls
from forebay.rpc.client import connect
from forebay.rpc.interceptors import RefusedCall
from forebay.rpc.server import RpcServer
from forebay.testing.clock import FakeClock

SERVICE = "forebay.api.quota.v1.TenantService"


def refusal(rpc: str = "TenantService/DeleteTenant", name: str = "router-1") -> RefusedCall:
    return RefusedCall(f"/forebay.api.quota.v1.{rpc}", "router", name, "CALLER_NOT_ALLOWED", "not for routers")


class Store(InMemoryPolicyStore):
    """The twin, which tells when something was recorded, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = asyncio.Semaphore(0)
        self.away = False

    async def record(self, action: Action) -> None:
        self.recorded.release()
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "POLICY_STORE_UNAVAILABLE", "away")
        await super().record(action)

    async def wait(self, rows: int) -> None:
        """Returns once so many more rows were asked for."""
        async with asyncio.timeout(60):
            for _ in range(rows):
                await self.recorded.acquire()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def refused(store: Store, clock: FakeClock) -> AsyncIterator[RefusedCalls]:
    refused = RefusedCalls(store, clock)
    async with background(refused.run(), "refused calls"):
        yield refused


async def rows(store: Store) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns actor, action and notes of all events, oldest first."""
    events = list(reversed(await store.events(0, 1_000, "", True)))
    assert unbroken(events)
    return [(event.action.actor, event.action.action, event.action.changes) for event in events]


async def test_a_flood_is_a_row_a_minute_for_each_kind(refused: RefusedCalls, store: Store, clock: FakeClock) -> None:
    refused.note(refusal())
    await store.wait(1)
    for _ in range(500):
        refused.note(refusal())
        refused.note(refusal("QuotaService/Peek", "router-2"))
    assert len(await rows(store)) == 1
    clock.advance(GATHER_S)
    await store.wait(2)
    assert await rows(store) == [
        ("router/router-1", "DeleteTenant", ()),
        ("router/router-1", "DeleteTenant", ("calls: 500",)),
        ("router/router-2", "Peek", ("calls: 500",)),
    ]


async def test_what_is_not_for_administrators_is_not_noted(refused: RefusedCalls, store: Store) -> None:
    for rpc in ("QuotaService/Reserve", "PolicyService/WatchPolicies"):
        refused.note(refusal(rpc))
    refused.note(RefusedCall("/grpc.health.v1.Health/Check", "router", "router-1", "CALLER_NOT_ALLOWED", ""))
    refused.note(refusal())
    await store.wait(1)
    assert [action for _, action, _ in await rows(store)] == ["DeleteTenant"]


async def test_many_names_are_not_many_rows(refused: RefusedCalls, store: Store) -> None:
    for number in range(3 * MAX_KINDS):
        refused.note(refusal(name=f"router-{number}"))
    await store.wait(MAX_KINDS + 1)
    assert (await rows(store))[-1] == ("several/several", "several", (f"calls: {2 * MAX_KINDS}",))


async def test_a_store_that_is_away_does_not_end_it(refused: RefusedCalls, store: Store, clock: FakeClock) -> None:
    store.away = True
    refused.note(refusal())
    await store.wait(1)
    store.away = False
    refused.note(refusal())
    clock.advance(GATHER_S)
    await store.wait(1)
    assert await rows(store) == [("router/router-1", "DeleteTenant", ("calls: 2",))]


async def test_what_has_gathered_is_written_at_the_end(store: Store, clock: FakeClock) -> None:
    refused = RefusedCalls(store, clock)
    async with background(refused.run(), "refused calls"):
        refused.note(refusal())
        await store.wait(1)
        refused.note(refusal())
        refused.note(refusal())
    assert len(await rows(store)) == 2


async def test_a_server_tells_whom_it_refuses(tmp_path: Path) -> None:
    def shown_by(caller: str) -> TlsConfig:
        return TlsConfig.model_validate(certify(tmp_path, caller, f"{caller}-7"))

    calls: list[RefusedCall] = []
    server = RpcServer("127.0.0.1:0", tls=shown_by("quota"), refused=calls.append)
    register = quota_pb2_grpc.add_TenantServiceServicer_to_server
    server.add(register, quota_pb2_grpc.TenantServiceServicer(), SERVICE)
    await server.start()
    key = (("authorization", "Bearer fb_x"),)
    for caller, metadata in (("worker", ()), ("admin", key), ("admin", ())):
        async with connect(server.address, caller="test", service="quota", tls=shown_by(caller)) as channel:
            stub = quota_pb2_grpc.TenantServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.RevokeKey(quota_pb2.RevokeKeyRequest(), metadata=metadata)
    await server.drain(0)
    assert [(call.caller, call.name, call.reason) for call in calls] == [
        ("worker", "worker-7", "CALLER_NOT_ALLOWED"),
        ("admin", "admin-7", "TENANT_KEY_REFUSED"),
    ]
    assert {call.method for call in calls} == {f"/{SERVICE}/RevokeKey"}


async def test_an_end_in_the_middle_of_writing_leaves_out_nothing_more(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writing = InMemoryPolicyStore(), asyncio.Event()
    refused, record = RefusedCalls(store, clock), store.record

    async def stuck(_: Action) -> None:
        monkeypatch.setattr(store, "record", record)
        writing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "record", stuck)
    for name in ("router-1", "router-2", "router-3"):
        refused.note(refusal(name=name))
    async with background(refused.run(), "refused calls"):
        await writing.wait()
    events = await store.events(0, 9, "", True)
    assert [event.action.actor for event in events] == ["router/router-3", "router/router-2"]
