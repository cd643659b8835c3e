"""A worker around a hand-stepped engine, with its peers, over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.api.worker.v1 import worker_pb2
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.testing.clock import FakeClock
from forebay.worker.config import WorkerConfig
from forebay.worker.domain.step_cost import StepCost
from forebay.worker.engine import Capacity, EngineRequest
from forebay.worker.main import build_around
from forebay.worker.simulated_engine import SimulatedEngine

from .peers import Metering, Policies, Router, Scheduler, serve, within

SCHEDULER = scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server
METERING = metering_pb2_grpc.add_MeteringServiceServicer_to_server
POLICIES = quota_pb2_grpc.add_PolicyServiceServicer_to_server

# Ten milliseconds a step, whoever takes part.
STEP = StepCost(fixed=0.01, per_sequence=0.0, per_context_token=0.0, per_prefill_token=0.0)


class WatchedEngine(SimulatedEngine):
    """A hand-stepped engine that tells the test what it is asked."""

    def __init__(self, clock: FakeClock, window_tokens: int) -> None:
        capacity = Capacity(1024, 16, 8, 512, 256, 0)
        super().__init__(capacity, STEP, window_tokens=window_tokens, manual=True, monotonic=clock.monotonic)
        self.added: asyncio.Queue[EngineRequest] = asyncio.Queue()
        self.aborted: asyncio.Queue[str] = asyncio.Queue()
        self.acknowledged: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def add(self, request: EngineRequest) -> None:
        super().add(request)
        self.added.put_nowait(request)

    def abort(self, attempt_id: str) -> None:
        super().abort(attempt_id)
        self.aborted.put_nowait(attempt_id)

    def delivered(self, attempt_id: str, tokens: int) -> None:
        super().delivered(attempt_id, tokens)
        self.acknowledged.put_nowait((attempt_id, tokens))


@dataclass
class Loopback:
    """One worker and its peers."""

    clock: FakeClock
    engine: WatchedEngine
    server: RpcServer
    scheduler: Scheduler
    metering: Metering
    policies: Policies
    register: scheduler_pb2.AttachRequest.Register
    channel: grpc.aio.Channel
    servers: dict[str, RpcServer]

    async def restart_metering(self) -> None:
        """Ends metering's server, and starts another at its address."""
        address = self.servers["metering"].address
        await self.servers["metering"].drain(0)
        self.metering.acknowledging = True
        self.servers["metering"] = await serve(METERING, self.metering, "metering", address)

    @property
    def peer(self) -> common_pb2.Peer:
        return self.register.worker

    async def router(self) -> Router:
        """Opens a session as a router."""
        router = Router(self.channel, self.peer)
        await router.open()
        return router

    async def started(self, router: Router, *payloads: worker_pb2.Start, taken: int | None = None) -> None:
        """Brings payloads, and returns once the engine has them, or as many as are to be taken."""
        await router.start(*payloads)
        for _ in range(len(payloads) if taken is None else taken):
            await within(self.engine.added.get())


@pytest.fixture
def window_tokens() -> int:
    return 0


@pytest.fixture
def spool_dir() -> Path | None:
    return None


@pytest.fixture
async def loopback(clock: FakeClock, window_tokens: int, spool_dir: Path | None) -> AsyncIterator[Loopback]:
    scheduler, metering, policies = Scheduler(), Metering(), Policies("acme", "globex")
    async with AsyncExitStack() as stack:
        servers = {
            "scheduler": await serve(SCHEDULER, scheduler, "scheduler"),
            "metering": await serve(METERING, metering, "metering"),
            "quota": await serve(POLICIES, policies, "quota"),
        }

        async def stop_servers() -> None:
            for server in servers.values():
                await server.drain(0)

        stack.push_async_callback(stop_servers)
        config = WorkerConfig(
            id="worker-1",
            model="tiny",
            pool="gold",
            engine="simulated",
            scheduler_address=servers["scheduler"].address,
            metering_address=servers["metering"].address,
            quota_address=servers["quota"].address,
            max_unrecorded_events=8,
            spool_dir=spool_dir,
        )
        engine = WatchedEngine(clock, window_tokens)
        worker = await build_around(engine, config, stack, clock)
        await worker.start()
        stack.push_async_callback(RpcServer.drain, worker, 0)
        channel = await stack.enter_async_context(connect(worker.address, caller="test"))
        register = await scheduler.heard("register")
        await scheduler.heard("running_complete")
        yield Loopback(clock, engine, worker, scheduler, metering, policies, register, channel, servers)
