"""A real Envoy in front of a router, configured from deploy/envoy/, that asks quota over mutual TLS.

The time of quota's counters stands still, so no window can expire, however slow the machine is.
"""

from __future__ import annotations

import asyncio
import re
import string
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import envoy
import grpc
import pytest
import redis
from prometheus_client import REGISTRY

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.cli.certificates import certify
from forebay.client import ForebayClient
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.quota.redis_counters import RedisCounters
from forebay.rpc.client import connect
from forebay.rpc.status import from_rpc_error
from forebay.testing.mesh import Mesh
from forebay.testing.valkey import free_port
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow]

NOW_MS = 1_700_000_000_250
LIMIT = 20
TENANTS = {
    "acme": {"plan": "enterprise", "limits": {"requests_per_minute": LIMIT}},
    "globex": {"plan": "enterprise"},
    "initech": {"plan": "enterprise", "limits": {"requests_per_second": LIMIT // 4}},
}
CONFIG = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


@pytest.fixture
async def mesh(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr("forebay.quota.main.RedisCounters", partial(RedisCounters, now=lambda: NOW_MS))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    monkeypatch.setenv("FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND", "0")
    async with Mesh(tmp_path, redis_url, SimulatedEngine(), TENANTS, certificates=tmp_path / "certificates") as mesh:
        yield mesh


@contextmanager
def envoy_before(mesh: Mesh, tmp_path: Path, **others: str) -> Iterator[str]:
    """Runs Envoy in front of a mesh, with other values of some variables; yields where it listens."""
    port = free_port()
    certify(tmp_path / "certificates", "edge", "edge-1")
    values = {"LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": str(port), "CERTIFICATES": str(tmp_path / "certificates")}
    for service in ("router", "quota"):
        host, _, service_port = mesh.addresses[service].rpartition(":")
        values |= {f"{service.upper()}_HOST": host, f"{service.upper()}_PORT": service_port}
    config = tmp_path / "envoy.yaml"
    # Envoy's patience is for production: here nothing passes, and nobody is given up, because the machine is slow.
    patient = re.sub(r"\b(connect_timeout|timeout): [0-9.]*[1-9]s", r"\1: 60s", CONFIG.read_text())
    config.write_text(string.Template(patient).substitute(values | others))
    binary = Path(next(iter(envoy.__path__))) / "_bin" / "envoy"
    # Envoys on one machine share memory by this number unless told otherwise.
    command = [str(binary), "-c", str(config), "--concurrency", "1", "-l", "warn", "--use-dynamic-base-id"]
    with (tmp_path / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def public(mesh: Mesh, tmp_path: Path) -> Iterator[str]:
    """Where an Envoy in front of the mesh listens."""
    with envoy_before(mesh, tmp_path) as address:
        yield address


def seen_by_the_router() -> float:
    """Returns how many Generate calls routers of this process have taken."""
    name, method = "forebay_rpc_seconds_count", "/forebay.api.router.v1.RouterService/Generate"
    codes = {code.name for code in Code} | {"OK"}
    return sum(REGISTRY.get_sample_value(name, {"method": method, "code": code}) or 0 for code in codes)


def ratelimit_headers(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Returns what Envoy tells of limits with a refusal."""
    headers = dict([*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())])
    return {name: value for name, value in headers.items() if "ratelimit" in name}


async def until_open(address: str) -> None:
    """Returns once a router refuses a stranger: Envoy has found it healthy. Quota counts nothing of this."""
    code = Code.UNAVAILABLE
    async with asyncio.timeout(60), ForebayClient(address, "nobody's") as stranger:
        while code is Code.UNAVAILABLE:
            with pytest.raises(MeshError) as caught:
                await stranger.list_models()
            code = caught.value.code
    assert code is Code.UNAUTHENTICATED


async def test_the_21st_request_of_a_minute_is_refused_and_no_router_sees_it(mesh: Mesh, public: str) -> None:
    await until_open(public)
    before = seen_by_the_router()
    async with ForebayClient(public, mesh.keys["acme"]) as client:
        for _ in range(LIMIT):
            assert (await client.generate("Hello", max_tokens=1)).usage.completion == 1
        with pytest.raises(MeshError) as refused:
            await client.generate("Hello", max_tokens=1)
    assert seen_by_the_router() == before + LIMIT
    error = refused.value
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "REQUESTS_PER_MINUTE")
    assert error.retry_after == 60.75  # the second of all twenty leaves the window 61 s after it began
    assert error.quota_violations == (QuotaViolation("tenant:acme", "requests_per_minute", LIMIT, LIMIT, 1),)

    async with connect(public, caller="test") as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)

        def list_models(tenant: str) -> grpc.aio.UnaryUnaryCall:
            bearer = (("authorization", f"Bearer {mesh.keys[tenant]}"),)
            return stub.ListModels(router_pb2.ListModelsRequest(), metadata=bearer, timeout=60)

        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await list_models("acme")
        assert from_rpc_error(raw.value).quota_violations == error.quota_violations
        assert ratelimit_headers(raw.value) == {
            "x-envoy-ratelimited": "true",
            "x-ratelimit-limit": f'{LIMIT}, {LIMIT};w=60;name="envoy_requests_per_minute"',
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": "61",
        }

        other = list_models("globex")
        await other  # another tenant's requests pass, and say what is left
        headers = dict(await other.initial_metadata())
        assert headers["x-ratelimit-remaining"] == str(int(headers["x-ratelimit-limit"].split(",")[0]) - 1)
        assert "x-envoy-ratelimited" not in headers


async def test_the_sixth_request_of_a_second_is_refused_and_no_router_sees_it(mesh: Mesh, public: str) -> None:
    await until_open(public)
    before = seen_by_the_router()
    async with ForebayClient(public, mesh.keys["initech"]) as client:
        for _ in range(5):
            await client.generate("Hello", max_tokens=1)
        with pytest.raises(MeshError) as refused:
            await client.generate("Hello", max_tokens=1)
    assert seen_by_the_router() == before + 5
    error = refused.value
    assert (error.reason, error.retry_after) == ("REQUESTS_PER_SECOND", 0.2)
    assert error.quota_violations == (QuotaViolation("tenant:initech", "requests_per_second", 5, 5, 1),)
    async with connect(public, caller="test") as channel:
        bearer = (("authorization", f"Bearer {mesh.keys['initech']}"),)
        call = router_pb2_grpc.RouterServiceStub(channel).ListModels(
            router_pb2.ListModelsRequest(), metadata=bearer, timeout=60
        )
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await call
    assert ratelimit_headers(raw.value) == {
        "x-envoy-ratelimited": "true",
        "x-ratelimit-limit": '5, 5;w=1;name="envoy_requests_per_second"',
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "1",
    }


async def test_without_quota_envoy_leaves_it_to_the_routers(mesh: Mesh, tmp_path: Path) -> None:
    with envoy_before(mesh, tmp_path, QUOTA_PORT=str(free_port())) as address:
        await until_open(address)
        before = seen_by_the_router()
        async with ForebayClient(address, mesh.keys["acme"]) as client:
            answers = [await client.generate("Hello", max_tokens=1) for _ in range(LIMIT)]
            assert len(answers) == LIMIT
            with pytest.raises(MeshError) as refused:
                await client.generate("Hello", max_tokens=1)
    assert refused.value.reason == "REQUESTS_PER_MINUTE"
    assert seen_by_the_router() == before + LIMIT + 1
