"""A worker that can run nothing for a moment: what was meant for it waits, and nothing is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.client import ForebayClient
from forebay.errors import Code, MeshError
from forebay.rpc.client import connect
from forebay.testing.mesh import Mesh
from forebay.worker.event_log import MemoryEventLog
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow]


async def test_a_disk_that_does_not_answer_for_a_moment_costs_time_and_no_request(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled: list[MeshError] = []
    monkeypatch.setattr(MemoryEventLog, "trouble", property(lambda log: stalled[-1] if stalled else None))
    # Longer than all executions that a request may have take, when each is refused.
    monkeypatch.setattr("forebay.worker.lifetime.TICK_S", 1.0)
    async with (
        Mesh(tmp_path, redis_url, SimulatedEngine(speed=20), {"acme": {"plan": "enterprise"}}) as mesh,
        ForebayClient(mesh.address, mesh.keys["acme"]) as client,
        connect(mesh.addresses["scheduler"], caller="test") as channel,
    ):
        scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        await client.generate("Are you there?", max_tokens=1)
        stalled.append(MeshError(Code.UNAVAILABLE, "SPOOL_UNAVAILABLE", "the disk does not answer"))
        asked = asyncio.create_task(client.generate("And now?", max_tokens=1))
        async with asyncio.timeout(60):
            while (
                (await scheduler.DescribePools(scheduler_pb2.DescribePoolsRequest())).pools[0].workers[0].engine.healthy
            ):
                await asyncio.sleep(0.01)
        stalled.clear()
        assert (await asked).usage.completion == 1
