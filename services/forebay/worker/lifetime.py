"""From the loading of the engine to the last acknowledged event: what the worker does besides answering."""

from __future__ import annotations

import asyncio

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.policy.watcher import PolicyWatcher
from forebay.rpc.server import RpcServer
from forebay.telemetry.logs import get_logger
from forebay.worker.config import WorkerConfig
from forebay.worker.engine import Engine
from forebay.worker.metering_link import MeteringLink
from forebay.worker.scheduler_link import SchedulerLink
from forebay.worker.service import WorkerService
from forebay.worker.servicer import FULL_NAME

TICK_S = 0.05
LAST_WORDS_S = 0.25
LAST_EVENTS_S = 2.0

log = get_logger("worker")


class WorkerServer(RpcServer):
    """An `RpcServer` that hands over what still runs before it stops."""

    def __init__(self, config: WorkerConfig, service: WorkerService, clock: Clock) -> None:
        super().__init__(
            config.listen, tls=config.tls, max_connections=config.max_connections, channelz=config.channelz
        )
        self._service = service
        self._clock = clock

    async def drain(self, grace_s: float) -> None:
        """Takes no more, lets what runs go on for `grace_s` seconds, hands over the rest, and then stops."""
        await self.stop_serving()
        self._service.drain(grace_s)
        while self._service.running:
            await self._clock.sleep(TICK_S)
            self._service.tick()  # here, too: a drain must end even if it began because whoever keeps the time has failed
        # Routers' sessions never end by themselves: what was said last gets time to leave, then they are broken off.
        await self._clock.sleep(LAST_WORDS_S)
        await super().drain(0)


async def serve_engine(
    engine: Engine, service: WorkerService, policies: PolicyWatcher, scheduler: SchedulerLink
) -> None:
    """Loads the engine and, once tenants are known as well, offers it to the scheduler until cancelled."""
    log.info("loading", engine=engine.kind)
    await engine.start(service.step)
    service.started = True
    log.info("engine ready", engine=engine.kind, kv_tokens=engine.capacity.kv_tokens)
    await policies.wait_ready()
    await scheduler.run()


async def keep_time(
    service: WorkerService, policies: PolicyWatcher, scheduler: SchedulerLink, server: RpcServer, clock: Clock
) -> None:
    """Ticks, and says whether the worker can do its job, until cancelled.

    Raises:
        MeshError: ENGINE_FAILED, when everything has been handed over; only a new process has a new engine.
    """
    while True:
        await clock.sleep(TICK_S)
        service.tick()
        scheduler.tick()
        server.set_serving(FULL_NAME, service.healthy and policies.ready and not service.draining)
        if service.engine_failed:
            raise MeshError(
                Code.UNAVAILABLE, "ENGINE_FAILED", "the engine has failed; the worker must be started again"
            )


async def last_events(metering: MeteringLink) -> None:
    """Gives metering time to acknowledge what is left; what is not by then only a spool keeps."""
    try:
        async with asyncio.timeout(LAST_EVENTS_S):
            await metering.emptied()
    except TimeoutError:
        log.error("metering has not acknowledged all usage events", events=metering.unacknowledged)
