"""Who may call what: every rpc of the contracts, tried by every kind of caller over real TLS connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc, rate_limit_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.cli.certificates import Authority, certify
from forebay.config import TlsConfig
from forebay.errors import Code, MeshError
from forebay.quota.edge_servicer import ENVOYS_NAME, add_edge_servicer_to_server
from forebay.rpc.allowlist import ADMIN, EDGE, INTERNAL, PROBE, PUBLIC, SERVICES
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error

KEY = (("authorization", "Bearer fb_aaaaaaaaaaaa_" + "A" * 43),)

# What each caller gets: "passes" reaches the handler, which here offers nothing.
PASSES = (Code.UNIMPLEMENTED, "GRPC_UNIMPLEMENTED")
NOT_ALLOWED = (Code.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
KEY_REFUSED = (Code.PERMISSION_DENIED, "TENANT_KEY_REFUSED")
NO_HANDSHAKE = (Code.UNAVAILABLE, "GRPC_UNAVAILABLE")


class EnvoyToo:
    """As quota adds it: under its own name, and under the one that Envoy calls."""

    add_RateLimitServiceServicer_to_server = staticmethod(add_edge_servicer_to_server)


SERVICERS = (
    (router_pb2, router_pb2_grpc, "RouterService"),
    (router_pb2, router_pb2_grpc, "UsageService"),
    (quota_pb2, quota_pb2_grpc, "QuotaService"),
    (quota_pb2, quota_pb2_grpc, "PolicyService"),
    (quota_pb2, quota_pb2_grpc, "TenantService"),
    (scheduler_pb2, scheduler_pb2_grpc, "SchedulerService"),
    (worker_pb2, worker_pb2_grpc, "WorkerService"),
    (metering_pb2, metering_pb2_grpc, "MeteringService"),
    (rate_limit_pb2, EnvoyToo, "RateLimitService"),
)


class Nothing:
    """A servicer whose every rpc, of whatever shape, says that it is not offered."""

    def __getattr__(self, name: str) -> Any:
        async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED)

        return refuse


@dataclass(frozen=True)
class Rpc:
    """One rpc of the contracts."""

    path: str
    client_streams: bool
    server_streams: bool


def all_rpcs() -> Iterator[Rpc]:
    for messages, _, name in SERVICERS:
        service = messages.DESCRIPTOR.services_by_name[name]
        for method in service.methods:
            yield Rpc(f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
    yield Rpc(f"/{ENVOYS_NAME}/ShouldRateLimit", False, False)


RPCS = list(all_rpcs())


def test_every_rpc_of_the_contracts_is_in_exactly_one_list() -> None:
    assert {rpc.path for rpc in RPCS} == PUBLIC | set(INTERNAL)
    assert not PUBLIC & set(INTERNAL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[RpcServer]:
    server = RpcServer("127.0.0.1:0", tls=tls(folder, "quota"))
    for messages, stubs, name in SERVICERS:
        full_name = messages.DESCRIPTOR.services_by_name[name].full_name
        server.add(getattr(stubs, f"add_{name}Servicer_to_server"), Nothing(), full_name)
    await server.start()
    yield server
    await server.drain(0)


def tls(folder: Path, service: str) -> TlsConfig:
    return TlsConfig.model_validate(certify(folder, service, f"{service}-1"))


def foreign(folder: Path, tmp_path: Path) -> TlsConfig:
    """A certificate that says `router`, of another authority; the server's own is believed, so that only its side can refuse."""
    other = certify(tmp_path / "other", "router", "router-1")
    return TlsConfig.model_validate(other | {"ca_file": str(folder / "ca.pem")})


def expired(folder: Path, tmp_path: Path) -> TlsConfig:
    long_ago = datetime.now(UTC) - timedelta(days=200)
    certificate, key = Authority.load_or_create(folder, long_ago).issue(
        "router", "router-1", long_ago, timedelta(days=1)
    )
    (tmp_path / "expired.pem").write_text(certificate)
    (tmp_path / "expired.key").write_text(key)
    return TlsConfig(
        ca_file=folder / "ca.pem", certificate_file=tmp_path / "expired.pem", key_file=tmp_path / "expired.key"
    )


async def outcome(
    channel: grpc.aio.Channel, rpc: Rpc, metadata: Any = None, *, half_close: bool = False
) -> tuple[Code, str]:
    """Calls an rpc with an empty message; returns how it ended."""
    kind = f"{'stream' if rpc.client_streams else 'unary'}_{'stream' if rpc.server_streams else 'unary'}"
    method = getattr(channel, kind)(rpc.path, request_serializer=None, response_deserializer=None)
    # Nothing is written to a session: it is refused as it is opened, and a write that comes too late hides the status.
    request = () if rpc.client_streams else (b"",)
    call = method(*request, metadata=metadata, timeout=60)
    try:
        if half_close:
            await call.done_writing()
        if rpc.server_streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        ended: MeshError = from_rpc_error(error)
        print(rpc.path, error.code().name, error.details())
        return ended.code, ended.reason
    return Code.UNKNOWN, "answered"


async def outcomes(address: str, certificate: TlsConfig | None, metadata: Any = None) -> dict[str, tuple[Code, str]]:
    async with connect(address, caller="test", service="quota", tls=certificate) as channel:
        results = await asyncio.gather(*(outcome(channel, rpc, metadata) for rpc in RPCS))
    return {rpc.path: result for rpc, result in zip(RPCS, results, strict=True)}


@pytest.mark.parametrize("caller", [*SERVICES, ADMIN, EDGE, PROBE, "stranger"])
async def test_a_service_gets_what_the_allowlist_gives_it(server: RpcServer, folder: Path, caller: str) -> None:
    with capture_logs() as logs:
        results = await outcomes(server.address, tls(folder, caller))
    may = {rpc.path: rpc.path in PUBLIC or caller in INTERNAL[rpc.path] for rpc in RPCS}
    assert results == {path: PASSES if allowed else NOT_ALLOWED for path, allowed in may.items()}
    refused = {(log["caller"], log["rpc"], log["reason"]) for log in logs if log["event"] == "call refused"}
    assert refused == {(caller, path, "CALLER_NOT_ALLOWED") for path, allowed in may.items() if not allowed}


async def test_a_tenants_key_opens_no_internal_rpc(server: RpcServer, folder: Path) -> None:
    with capture_logs() as logs:
        results = await outcomes(server.address, tls(folder, ADMIN), metadata=KEY)
    assert results == {rpc.path: PASSES if rpc.path in PUBLIC else KEY_REFUSED for rpc in RPCS}
    refused = [log for log in logs if log["event"] == "call refused"]
    assert {(log["rpc"], log["reason"]) for log in refused} == {(path, "TENANT_KEY_REFUSED") for path in INTERNAL}


async def test_a_tenants_key_opens_no_internal_rpc_in_plaintext_either() -> None:
    server = RpcServer("127.0.0.1:0")
    for messages, stubs, name in SERVICERS:
        full_name = messages.DESCRIPTOR.services_by_name[name].full_name
        server.add(getattr(stubs, f"add_{name}Servicer_to_server"), Nothing(), full_name)
    await server.start()
    results = await outcomes(server.address, None, metadata=KEY)
    await server.drain(0)
    assert results == {rpc.path: PASSES if rpc.path in PUBLIC else KEY_REFUSED for rpc in RPCS}


@pytest.mark.parametrize("certificate", ["foreign", "expired", "none"])
async def test_who_is_not_vouched_for_does_not_get_as_far_as_an_rpc(
    server: RpcServer, folder: Path, tmp_path: Path, certificate: str
) -> None:
    shown = {"foreign": foreign, "expired": expired}.get(certificate)
    results = await outcomes(server.address, shown(folder, tmp_path) if shown else None)
    assert set(results.values()) == {NO_HANDSHAKE}


async def test_a_client_does_not_talk_to_the_wrong_service(server: RpcServer, folder: Path) -> None:
    async with connect(server.address, caller="test", service="metering", tls=tls(folder, "router")) as channel:
        assert await outcome(channel, RPCS[0]) == NO_HANDSHAKE


async def test_health_is_for_everyone_of_the_mesh_and_reflection_for_the_operator(
    server: RpcServer, folder: Path
) -> None:
    health = Rpc("/grpc.health.v1.Health/Check", client_streams=False, server_streams=False)
    reflection = Rpc("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True, True)
    for caller in (*SERVICES, ADMIN, EDGE, PROBE, "stranger"):
        async with connect(server.address, caller="test", service="quota", tls=tls(folder, caller)) as channel:
            expected = NOT_ALLOWED if caller == "stranger" else (Code.UNKNOWN, "answered")
            assert await outcome(channel, health) == expected
            expected = (Code.UNKNOWN, "answered") if caller == ADMIN else NOT_ALLOWED
            assert await outcome(channel, reflection, half_close=caller == ADMIN) == expected
    assert health_pb2.DESCRIPTOR.services_by_name["Health"].full_name in health.path
    assert reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name in reflection.path


async def test_a_certificate_is_replaced_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.rpc.tls.LOOK_EVERY_S", 0.0)
    files = tmp_path / "files"
    server_tls = tls(files, "quota")
    server = RpcServer("127.0.0.1:0", tls=server_tls)
    server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, Nothing(), "forebay.api.quota.v1.QuotaService")
    await server.start()
    rpc = Rpc("/forebay.api.quota.v1.QuotaService/Reserve", client_streams=False, server_streams=False)
    channel = connect(server.address, caller="test", service="quota", tls=tls(files, "router"))
    assert await outcome(channel, rpc) == PASSES

    # A new authority and new certificates, in the same files: both ends have to take theirs for this to go on.
    for file in files.iterdir():
        file.unlink()
    tls(files, "quota")
    tls(files, "router")
    assert await outcome(channel, rpc) == PASSES
    await channel.close()
    await server.drain(0)
