"""The prices, watched at metering."""

from __future__ import annotations

import grpc

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.quota.domain.prices import PriceTable
from forebay.quota.messages import from_pb_price
from forebay.quota.prices import Prices
from forebay.rpc.watch import follow


class PriceLink:
    """Keeps `prices` as metering has them; `run` must be running. A table once known is kept while metering is away."""

    def __init__(self, channel: grpc.aio.Channel, prices: Prices) -> None:
        self._stub: metering_pb2_grpc.MeteringServiceAsyncStub = metering_pb2_grpc.MeteringServiceStub(channel)
        self._prices = prices

    async def run(self) -> None:
        """Watches until cancelled."""
        await follow("prices", lambda: self._stub.WatchPrices(metering_pb2.WatchPricesRequest()), self._received)

    def _received(self, response: metering_pb2.WatchPricesResponse) -> None:
        self._prices.table = PriceTable(map(from_pb_price, response.prices))
