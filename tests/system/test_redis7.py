"""The mesh on the Redis that Debian ships: what `make test-system` adds to the store tests, which run on it as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from forebay.client import ForebayClient
from forebay.errors import Code, MeshError
from forebay.testing.mesh import Mesh
from forebay.worker.domain.step_cost import FREE
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow, pytest.mark.system]

LIMIT = 5


async def test_the_server_is_redis_7_and_not_valkey(redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        info = await redis.info("server")
    assert info["redis_version"].startswith("7.")
    assert "valkey_version" not in info


async def test_a_mesh_on_redis_holds_its_tenants_to_their_limits(tmp_path: Path, redis_url: str) -> None:
    tenants = {"seventh": {"plan": "standard", "limits": {"requests_per_minute": LIMIT, "concurrent_requests": LIMIT}}}
    async with (
        Mesh(tmp_path, redis_url, SimulatedEngine(cost=FREE), tenants) as mesh,
        ForebayClient(mesh.address, mesh.keys["seventh"]) as client,
    ):
        calls = (client.generate("Turn the wheel.", max_tokens=3) for _ in range(4 * LIMIT))
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, MeshError)]
    assert len(results) - len(refused) == LIMIT
    assert {error.code for error in refused} == {Code.RESOURCE_EXHAUSTED}
    assert {violation.limit for error in refused for violation in error.quota_violations} <= {
        "requests_per_minute",
        "concurrent_requests",
    }
