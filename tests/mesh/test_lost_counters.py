"""The counters' server forgets everything while requests run: nobody gets more than a limit, and nobody loses anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest
import redis

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.client import ForebayClient
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.quota.redis_counters import RedisCounters
from forebay.rpc.client import connect
from forebay.testing.mesh import Mesh
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow]

RUNNING, TOKENS = 3, 20
LIMITS = {"concurrent_requests": RUNNING + 1, "tokens_per_day": 10_000, "daily_budget_usd": 1_000}


class Counters:
    """The clock of the counters' server, which can be moved on."""

    ahead_ms = 0

    def now(self) -> int:
        return int(time.time() * 1000) + self.ahead_ms


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    counters = Counters()
    monkeypatch.setattr("forebay.quota.main.RedisCounters", partial(RedisCounters, now=counters.now))
    monkeypatch.setattr("forebay.quota.budget_check.EVERY_S", 0.01)
    return counters


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine(manual=True)


@pytest.fixture
async def mesh(tmp_path: Path, redis_url: str, engine: SimulatedEngine, counters: Counters) -> AsyncIterator[Mesh]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    tenants = {"acme": {"plan": "enterprise", "limits": LIMITS}}
    async with Mesh(tmp_path, redis_url, engine, tenants) as mesh:
        yield mesh


async def steps(engine: SimulatedEngine) -> None:
    """Runs the engine."""
    while True:
        engine.step()
        await asyncio.sleep(0)


async def priced(stub: quota_pb2_grpc.QuotaServiceAsyncStub) -> None:
    """Returns once quota knows the prices, and so can keep a budget."""
    request = quota_pb2.ReserveRequest(request_id="0" * 32, tenant_id="acme", prompt_tokens=1, max_completion_tokens=1)
    request.router.id, request.router.incarnation = "test", 1
    async with asyncio.timeout(60):
        while True:
            try:
                await stub.Reserve(request)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            else:
                break
    settle = quota_pb2.SettleRequest(request_id=request.request_id, tenant_id="acme", router=request.router)
    await stub.Settle(settle)


async def used(stub: quota_pb2_grpc.QuotaServiceAsyncStub) -> dict[str, int]:
    states = (await stub.Peek(quota_pb2.PeekRequest(tenant_id="acme"))).limits
    return {state.limit: state.used for state in states}


async def compared(stub: quota_pb2_grpc.QuotaServiceAsyncStub) -> dict[str, int]:
    """Returns by how much budgets differ from the ledger, once they were compared."""
    async with asyncio.timeout(60):
        while True:
            states = (await stub.Peek(quota_pb2.PeekRequest(tenant_id="acme"))).limits
            if found := {state.limit: state.comparison.difference for state in states if state.HasField("comparison")}:
                return found
            await asyncio.sleep(0.01)


async def test_requests_that_run_through_it_are_served_and_counted_once(
    mesh: Mesh, engine: SimulatedEngine, counters: Counters, redis_url: str
) -> None:
    channel: grpc.aio.Channel
    async with (
        ForebayClient(mesh.address, mesh.keys["acme"]) as client,
        connect(mesh.addresses["quota"], caller="test") as channel,
    ):
        quota: quota_pb2_grpc.QuotaServiceAsyncStub = quota_pb2_grpc.QuotaServiceStub(channel)
        await priced(quota)
        ask = partial(client.generate, "Tell me everything.", max_tokens=TOKENS, ignore_eos=True)
        running = [asyncio.ensure_future(ask()) for _ in range(RUNNING)]
        async with asyncio.timeout(60):
            while engine.state().running + engine.state().waiting != RUNNING:
                await asyncio.sleep(0)
        with redis.Redis.from_url(redis_url) as server:
            server.flushall()

        refused = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
        assert {error.code for error in refused if isinstance(error, MeshError)} == {Code.RESOURCE_EXHAUSTED}
        assert len([error for error in refused if isinstance(error, MeshError)]) == 5

        async with background(steps(engine), "engine"):
            answers = await asyncio.gather(*running)
            assert {answer.usage.completion for answer in answers} == {TOKENS}
            with redis.Redis.from_url(redis_url) as server:
                async with asyncio.timeout(60):
                    while server.hlen("forebay:{acme}:settled") <= RUNNING:  # a mark is in it, too
                        await asyncio.sleep(0.01)
            counters.ahead_ms += 61_000
            state = await used(quota)
            served = sum(answer.usage.prompt + answer.usage.completion for answer in answers)
            assert (state["tokens_per_day"], state["concurrent_requests"]) == (served, 0)
            assert await compared(quota) == {"tokens_per_day": 0, "daily_budget_nano_usd": 0}
            await ask()
