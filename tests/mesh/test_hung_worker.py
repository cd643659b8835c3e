"""A worker that is stopped in the middle of a request and goes on later: what it says late is in the budget as in the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
import yaml

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.rpc.client import connect
from forebay.testing.processes import MeshProcesses

pytestmark = pytest.mark.slow

TENANT = "acme"
TENANTS = {"tenants": {TENANT: {"plan": "basic", "limits": {"tokens_per_day": 1_000_000, "monthly_budget_usd": 1_000}}}}
# Only a worker knows how long an engine worked for an attempt, so what it says late always changes the price.
PRICES = {
    "prompt_tokens": 10_000_000,
    "cached_tokens": 10_000_000,
    "completion_tokens": 10_000_000,
    "gpu_seconds": 10**15,
    "requests": 0,
}


async def test_a_budget_follows_the_ledger_when_a_worker_that_hung_goes_on(tmp_path: Path) -> None:
    # The router knows of the first tokens only, waits for the worker's last word in vain, and reports and settles what it knows.
    tenants, prices = tmp_path / "tenants.yaml", tmp_path / "prices.yaml"
    tenants.write_text(yaml.safe_dump(TENANTS))
    prices.write_text(yaml.safe_dump({"prices": [{"subject": "default", "nano_usd_per_million": PRICES}]}))
    environment = {"FOREBAY_METERING_PROVISIONAL_SECONDS": "1", "FOREBAY_METERING_PRICES_FILE": str(prices)}
    with MeshProcesses(tmp_path / "data", tenants=tenants, environment=environment) as mesh:
        async with (
            connect(mesh.router_address(), caller="client") as router,
            mesh.channel("quota") as quota,
            mesh.channel("metering") as metering,
        ):
            pid = mesh.pid("worker-1")
            await _ask_and_leave(mesh, router, pid)
            try:
                async with asyncio.timeout(60):
                    while not (reported := await _recorded(metering))[0]:
                        await asyncio.sleep(0.1)
                    while await _charged(quota) != reported:
                        await asyncio.sleep(0.1)
            finally:
                os.kill(pid, signal.SIGCONT)
            async with asyncio.timeout(60):
                while (corrected := await _recorded(metering)) == reported:
                    await asyncio.sleep(0.1)
                while await _charged(quota) != corrected:
                    await asyncio.sleep(0.1)
            assert corrected[1] > reported[1]


async def _ask_and_leave(mesh: MeshProcesses, router: grpc.aio.Channel, worker: int) -> None:
    """Stops the worker once the answer has begun, and then leaves."""
    call = router_pb2_grpc.RouterServiceStub(router).StreamGenerate(
        router_pb2.StreamGenerateRequest(
            options=router_pb2.GenerateOptions(
                prompt=router_pb2.Prompt(tokens=router_pb2.TokenIds(ids=range(100, 110))),
                sampling=common_pb2.Sampling(max_tokens=500, ignore_eos=True),
            )
        ),
        metadata=(("authorization", f"Bearer {mesh.key(TENANT)}"),),
    )
    async for event in call:
        if event.WhichOneof("event") == "delta" and event.delta.position >= 5:
            break
    os.kill(worker, signal.SIGSTOP)
    call.cancel()


async def _recorded(channel: grpc.aio.Channel) -> tuple[int, int]:
    """Returns the tokens and the nano-USD that the ledger has."""
    stub = metering_pb2_grpc.MeteringServiceStub(channel)
    request = metering_pb2.SumUsageRequest(filter=metering_pb2.UsageFilter(tenant_ids=[TENANT]))
    totals = (await stub.SumUsage(request, timeout=20)).totals
    tokens = sum(total.prompt_tokens + total.completion_tokens for total in totals)
    return tokens, sum(total.cost_nano_usd for total in totals)


async def _charged(channel: grpc.aio.Channel) -> tuple[int, int]:
    """Returns the tokens of the day and the nano-USD of the month, with what is held."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    states = (await stub.Peek(quota_pb2.PeekRequest(tenant_id=TENANT), timeout=20)).limits
    used = {state.limit: state.used for state in states}
    return used["tokens_per_day"], used["monthly_budget_nano_usd"]
