"""The service as it is wired, on a real server of counters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.cli.certificates import certify
from forebay.config import ConfigError, TlsConfig
from forebay.errors import Code
from forebay.metering.config import MeteringConfig
from forebay.metering.main import build as build_metering
from forebay.quota.config import QuotaConfig
from forebay.quota.main import POLICY, QUOTA, TENANT, build
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error
from forebay.testing.valkey import ValkeyServer

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def metering(tmp_path: Path) -> AsyncIterator[RpcServer]:
    async with AsyncExitStack() as stack:
        server = await build_metering(MeteringConfig(id="metering-1", ledger_path=tmp_path / "ledger.sqlite"), stack)
        await server.start()
        yield server
        await server.drain(0)


@pytest.fixture
def config(tmp_path: Path, own_valkey: ValkeyServer, metering: RpcServer) -> QuotaConfig:
    (tmp_path / "tenants.yaml").write_text("tenants: {acme: {plan: basic}, globex: {plan: basic}}")
    (tmp_path / "keys.yaml").write_text("keys: []")
    return QuotaConfig(
        id="quota-1",
        redis_url=own_valkey.url,
        tenants_file=tmp_path / "tenants.yaml",
        keys_file=tmp_path / "keys.yaml",
        pepper="0123456789abcdef",
        metering_address=metering.address,
    )


async def until(watch: grpc.aio.UnaryStreamCall, status: int) -> None:
    """Returns once a health watch says so."""
    async for message in watch:
        if message.status == status:
            return


@pytest.mark.slow
async def test_the_service_reserves_and_says_when_it_cannot(config: QuotaConfig, own_valkey: ValkeyServer) -> None:
    request = quota_pb2.ReserveRequest(
        request_id="a" * 32,
        router=common_pb2.Peer(id="router-1", incarnation=1),
        tenant_id="acme",
        prompt_tokens=10,
        max_completion_tokens=10,
    )
    async with AsyncExitStack() as stack:
        server = await build(config, stack)
        await server.start()
        stack.push_async_callback(server.drain, 0)
        channel = await stack.enter_async_context(connect(server.address, caller="test"))
        health = health_pb2_grpc.HealthStub(channel)
        quota = quota_pb2_grpc.QuotaServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=QUOTA))

        await until(watch, SERVING)
        for name in (POLICY, TENANT):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        assert (await quota.Reserve(request)).reservation.lease.seconds == 30

        own_valkey.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await quota.Reserve(request)
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE")
        await until(watch, NOT_SERVING)

        own_valkey.start()
        # Asked at once, on the same channel, the counters answer; they have come back empty.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await quota.Reserve(request)
        error = from_rpc_error(caught.value)
        assert (error.code, {violation.limit for violation in error.quota_violations}) == (
            Code.RESOURCE_EXHAUSTED,
            {"requests_per_second", "requests_per_minute", "tokens_per_minute", "concurrent_requests"},
        )
        assert 50 < (error.retry_after or 0) <= 61
        # A new tenant is not refused for what others have lost.
        request.tenant_id = "globex"
        assert (await quota.Reserve(request)).reservation.lease.seconds == 30
        await until(watch, SERVING)
        watch.cancel()


async def test_wrong_policies_end_the_start_with_every_problem(config: QuotaConfig) -> None:
    config.tenants_file.write_text("tenants: {acme: {plan: none, weight: -1}, globex: {}}")
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match="2 problem"):
            await build(config, stack)


@pytest.mark.slow
async def test_a_call_that_the_allowlist_stops_is_in_the_audit_log(config: QuotaConfig, tmp_path: Path) -> None:
    def shown_by(caller: str) -> TlsConfig:
        return TlsConfig.model_validate(certify(tmp_path / "certificates", caller, f"{caller}-1"))

    stored = {"policy_url": f"sqlite:///{tmp_path}/policies.sqlite", "tls": shown_by("quota")}
    async with AsyncExitStack() as stack:
        server = await build(config.model_copy(update=stored), stack)
        await server.start()
        stack.push_async_callback(server.drain, 0)
        router, admin = [
            await stack.enter_async_context(
                connect(server.address, caller="test", service="quota", tls=shown_by(caller))
            )
            for caller in ("router", "admin")
        ]
        with pytest.raises(grpc.aio.AioRpcError):
            await quota_pb2_grpc.TenantServiceStub(router).DeleteTenant(quota_pb2.DeleteTenantRequest(tenant_id="acme"))
        events: list[quota_pb2.AuditEvent] = []
        async with asyncio.timeout(60):
            while not events:
                request = quota_pb2.ListAuditEventsRequest(refused_only=True)
                events = list((await quota_pb2_grpc.TenantServiceStub(admin).ListAuditEvents(request)).events)
    (event,) = events
    assert (event.actor, event.action, event.refusal.reason) == (
        "router/router-1",
        "DeleteTenant",
        "CALLER_NOT_ALLOWED",
    )
