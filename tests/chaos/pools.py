"""Looks at the scheduler's pool all the time, for requests that wait beside an idle worker."""

from __future__ import annotations

import asyncio
import time

import grpc

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.testing.processes import MeshProcesses

from .plan import SCHEDULERS
from .records import PoolSample

SAMPLE_EVERY_S = 0.25
ANSWERS_WITHIN_S = 1.0


class PoolWatch:
    """What whoever leads says.

    Attributes:
        samples: in order of time.
    """

    def __init__(self, mesh: MeshProcesses) -> None:
        self._mesh = mesh
        self.samples: list[PoolSample] = []

    async def watch(self) -> None:
        """Looks until cancelled."""
        channels = [self._mesh.channel(name) for name in SCHEDULERS]
        try:
            stubs = [scheduler_pb2_grpc.SchedulerServiceStub(channel) for channel in channels]
            while True:
                await asyncio.gather(*map(self._look, stubs))
                await asyncio.sleep(SAMPLE_EVERY_S)
        finally:
            for channel in channels:
                await channel.close(None)

    async def _look(self, stub: scheduler_pb2_grpc.SchedulerServiceAsyncStub) -> None:
        try:
            answer = await stub.DescribePools(scheduler_pb2.DescribePoolsRequest(), timeout=ANSWERS_WITHIN_S)
        except grpc.aio.AioRpcError:
            return  # it is away, or follows
        for pool in answer.pools:
            idle = (
                worker.worker.id
                for worker in pool.workers
                if not worker.in_flight and not worker.draining and worker.engine.healthy
            )
            self.samples.append(PoolSample(time.monotonic(), pool.queued, frozenset(idle)))
