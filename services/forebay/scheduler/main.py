"""Wires the scheduler: the lease, a core for each term, and the server."""

from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2_grpc
from forebay.clock import Clock, SystemClock
from forebay.lifecycle import background, run_service
from forebay.rpc.server import RpcServer
from forebay.scheduler import metrics
from forebay.scheduler.config import SchedulerConfig
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.leadership import Leadership, Replica
from forebay.scheduler.lease_store import LeaseStore, MemoryLeaseStore
from forebay.scheduler.redis_lease_store import RedisLeaseStore
from forebay.scheduler.servicer import SchedulerServicer

# Another leads long before, but nobody comes to it while this one still has the connections.
HUNG_AFTER_S = 10.0

FULL_NAME = "forebay.api.scheduler.v1.SchedulerService"


async def build(config: SchedulerConfig, stack: AsyncExitStack, clock: Clock | None = None) -> RpcServer:
    """Returns the server, ready to start; what runs beside it ends with the stack."""
    clock = clock or SystemClock()
    server = RpcServer(config.listen, tls=config.tls, max_connections=config.max_connections, channelz=config.channelz)
    incarnation = int(clock.now() * 1_000_000)

    store: LeaseStore = MemoryLeaseStore(clock)
    if config.redis_url is not None:
        store = RedisLeaseStore(config.redis_url, config.domain)
        stack.push_async_callback(store.close)
    leadership = Leadership(
        store,
        Replica(config.id, incarnation, config.advertise or server.address),
        clock,
        lambda epoch: Scheduler(config.limits(), epoch),
        # A follower does its job, too.
        answered=lambda: server.set_serving(FULL_NAME, True),
    )
    server.add(
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
        SchedulerServicer(leadership, common_pb2.Peer(id=config.id, incarnation=incarnation)),
        FULL_NAME,
    )
    server.before_drain(leadership.resign)
    await stack.enter_async_context(background(leadership.run(), "scheduler.leadership", ends=True))
    await stack.enter_async_context(background(leadership.watch_time(), "scheduler.watch_time"))
    await stack.enter_async_context(background(metrics.watch(lambda: leadership.core, clock), "scheduler.metrics"))
    return server


def main() -> None:
    """Runs the scheduler until it is told to stop."""
    run_service(SchedulerConfig, build, HUNG_AFTER_S)
