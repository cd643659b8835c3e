"""Wires the worker."""

from __future__ import annotations

from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.api.worker.v1 import worker_pb2_grpc
from forebay.clock import Clock, SteadyClock, SystemClock
from forebay.lifecycle import background, run_service
from forebay.policy.watcher import PolicyWatcher
from forebay.rpc.client import connect
from forebay.rpc.leader import HUNG_AFTER_S, LeaderChannel
from forebay.rpc.server import RpcServer
from forebay.worker.config import WorkerConfig
from forebay.worker.domain.roster import Roster
from forebay.worker.engine import Engine
from forebay.worker.engines import make_engine
from forebay.worker.event_log import EventLog, MemoryEventLog
from forebay.worker.lifetime import WorkerServer, keep_time, last_events, serve_engine
from forebay.worker.metering_link import MeteringLink
from forebay.worker.scheduler_link import SchedulerLink
from forebay.worker.service import WorkerService
from forebay.worker.servicer import FULL_NAME, WorkerServicer
from forebay.worker.spool_event_log import open_spool

# vLLM takes a while to let go of a model.
STOP_WITHIN_S = 20.0


async def build(config: WorkerConfig, stack: AsyncExitStack) -> RpcServer:
    """Returns the server, ready to start; what runs beside it ends with `stack`."""
    return await build_around(make_engine(config), config, stack, SteadyClock(SystemClock()))


async def build_around(engine: Engine, config: WorkerConfig, stack: AsyncExitStack, clock: Clock) -> RpcServer:
    """As `build`, around an engine that is not started yet.

    Raises:
        ConfigError: the address cannot be bound, or the spool's directory cannot be used.
    """
    peer = common_pb2.Peer(id=config.id, incarnation=int(clock.now() * 1e6))
    stack.push_async_callback(engine.close)
    quota = await stack.enter_async_context(
        connect(config.quota_address, caller=config.id, service="quota", tls=config.tls)
    )
    metering = await stack.enter_async_context(
        connect(config.metering_address, caller=config.id, service="metering", tls=config.tls)
    )
    schedulers = LeaderChannel(
        config.scheduler_address,
        lambda address: connect(
            address, caller=config.id, service="scheduler", tls=config.tls, hung_after_s=HUNG_AFTER_S
        ),
    )
    stack.push_async_callback(schedulers.close)

    event_log: EventLog = MemoryEventLog(config.max_unrecorded_events)
    if config.spool_dir is not None:
        event_log = await stack.enter_async_context(
            open_spool(config.spool_dir, config.max_unrecorded_events, config.spool_bytes, clock)
        )

    def isolation_key(tenant_id: str) -> bytes | None:
        tenant = watcher.cache.tenants.get(tenant_id)
        return tenant.isolation_key if tenant else None

    watcher = PolicyWatcher(
        quota,
        peer,
        quota_pb2.WATCHER_KIND_WORKER,
        clock,
        changed=lambda: service.policies_changed(),
        serves=[(config.model, config.pool)],
    )
    service = WorkerService(engine, event_log, Roster(peer.id, peer.incarnation), clock, isolation_key, config.pool)
    server = WorkerServer(config, service, clock)
    servicer = WorkerServicer(service, engine, peer, config.model, config.pool)
    server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, servicer, FULL_NAME)

    metering_link = MeteringLink(metering, event_log, peer)
    register = scheduler_pb2.AttachRequest.Register(
        worker=peer,
        address=config.advertise or server.address,
        pool=config.pool,
        model=config.model,
        engine=engine.kind,
    )
    scheduler_link = SchedulerLink(schedulers, service, engine, register, clock)

    # What is begun last ends first: events still flow to metering when the rest has stopped.
    await stack.enter_async_context(background(metering_link.run(), "metering"))
    stack.push_async_callback(last_events, metering_link)
    await stack.enter_async_context(background(watcher.run(), "policies"))
    await stack.enter_async_context(background(keep_time(service, watcher, scheduler_link, server, clock), "time"))
    await stack.enter_async_context(background(serve_engine(engine, service, watcher, scheduler_link), "engine"))
    return server


def main() -> None:
    """Runs the service as a process."""
    run_service(WorkerConfig, build, stop_within_s=STOP_WITHIN_S)
