"""Wires the scheduler: a core, the clock that drives it, and the server."""

from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2_grpc
from forebay.clock import Clock, SystemClock
from forebay.lifecycle import background, run_service
from forebay.rpc.server import RpcServer
from forebay.scheduler.config import SchedulerConfig
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.service import SchedulerService
from forebay.scheduler.servicer import SchedulerServicer

FULL_NAME = "forebay.api.scheduler.v1.SchedulerService"


async def build(config: SchedulerConfig, stack: AsyncExitStack, clock: Clock | None = None) -> RpcServer:
    """Returns the server, ready to start; what runs beside it ends with the stack."""
    clock = clock or SystemClock()
    # One scheduler at a time: the start's time in µs is later than any epoch before it, and names this life as well.
    incarnation = int(clock.now() * 1_000_000)
    service = SchedulerService(Scheduler(config.limits(), epoch=incarnation), clock)
    await stack.enter_async_context(background(service.watch_time(), "scheduler.watch_time"))
    server = RpcServer(config.listen, tls=config.tls, max_connections=config.max_connections, channelz=config.channelz)
    server.add(
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
        SchedulerServicer(service, common_pb2.Peer(id=config.id, incarnation=incarnation)),
        FULL_NAME,
    )
    server.set_serving(FULL_NAME, True)
    return server


def main() -> None:
    """Runs the scheduler until it is told to stop."""
    run_service(SchedulerConfig, build)
