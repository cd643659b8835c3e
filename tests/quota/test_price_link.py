"""Prices come from metering, and again with each change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from forebay.api.metering.v1 import metering_pb2 as pb
from forebay.api.metering.v1 import metering_pb2_grpc
from forebay.policy.model import ServiceClass, TenantPolicy
from forebay.quota.domain.limits import Usage
from forebay.quota.price_link import PriceLink
from forebay.quota.prices import Prices
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer

TENANT = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500)


class Metering(metering_pb2_grpc.MeteringServiceServicer):
    """Tells one price, and another once it is `changed`."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    async def WatchPrices(self, request: pb.WatchPricesRequest, context: Any) -> AsyncIterator[pb.WatchPricesResponse]:
        for version in (1, 2):
            price = pb.Price(subject="default", item="requests", nano_usd_per_million=version * 10**6)
            yield pb.WatchPricesResponse(version=version, prices=[price])
            await self.changed.wait()


async def test_prices_are_followed() -> None:
    metering, prices = Metering(), Prices()
    server = RpcServer("127.0.0.1:0")
    name = "forebay.api.metering.v1.MeteringService"
    server.add(metering_pb2_grpc.add_MeteringServiceServicer_to_server, metering, name)
    await server.start()
    async with connect(server.address, caller="test") as channel:
        running = asyncio.create_task(PriceLink(channel, prices).run())
        for price in (1, 2):
            while prices.cost(TENANT, None, "m", Usage(1, 0, 0), 1.0) != price:
                await asyncio.sleep(0.001)
            metering.changed.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await server.drain(0)
