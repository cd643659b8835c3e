"""Wires the metering service."""

from __future__ import annotations

from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import SteadyClock, SystemClock
from forebay.lifecycle import background, run_service
from forebay.metering.config import MeteringConfig
from forebay.metering.price_book import PriceBook
from forebay.metering.price_file import load_prices, watch_prices
from forebay.metering.service import Metering
from forebay.metering.servicer import MeteringServicer
from forebay.metering.sqlite_ledger import open_ledger
from forebay.rpc.server import RpcServer

SERVICE = metering_pb2.DESCRIPTOR.services_by_name["MeteringService"].full_name


async def build(config: MeteringConfig, stack: AsyncExitStack) -> RpcServer:
    """Returns the server, ready to start; what runs beside it ends with `stack`.

    Raises:
        ConfigError: the prices, the ledger or the address cannot be used.
    """
    clock = SteadyClock(SystemClock())
    started_us = int(clock.now() * 1e6)
    prices = PriceBook(load_prices(config.prices_file), version=started_us)
    ledger = await stack.enter_async_context(open_ledger(config.ledger_path))
    metering = Metering(ledger, prices, clock, hold_s=config.provisional_seconds, max_waiting=config.max_waiting)
    await stack.enter_async_context(background(metering.commit_reports(), "commit-reports"))
    await stack.enter_async_context(background(metering.confirm_held(), "confirm-held"))
    if config.prices_file:
        await stack.enter_async_context(background(watch_prices(config.prices_file, prices, clock), "watch-prices"))

    server = RpcServer(config.listen, tls=config.tls, max_connections=config.max_connections, channelz=config.channelz)
    peer = common_pb2.Peer(id=config.id, incarnation=started_us)
    servicer = MeteringServicer(peer, metering, prices, clock, config.max_unacknowledged)
    server.add(metering_pb2_grpc.add_MeteringServiceServicer_to_server, servicer, SERVICE)
    watch = metering.watch_ledger(lambda writable: server.set_serving(SERVICE, writable))
    await stack.enter_async_context(background(watch, "watch-ledger"))
    return server


def main() -> None:
    """Runs the service until it is told to stop."""
    run_service(MeteringConfig, build)
