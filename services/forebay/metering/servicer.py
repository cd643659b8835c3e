"""MeteringService on the wire: protobuf to use cases and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import Clock
from forebay.metering.domain.selection import check_filter, read_cursor, write_cursor
from forebay.metering.messages import (
    from_pb_dimensions,
    from_pb_filter,
    to_pb_entry,
    to_pb_prices,
    to_pb_total,
)
from forebay.metering.price_book import PriceBook
from forebay.metering.record_session import RecordSession
from forebay.metering.service import Metering
from forebay.rpc.session import ServerSession


class MeteringServicer(metering_pb2_grpc.MeteringServiceServicer):
    """Answers the calls of MeteringService."""

    def __init__(
        self, peer: common_pb2.Peer, metering: Metering, prices: PriceBook, clock: Clock, max_unacknowledged: int
    ) -> None:
        self._peer = peer
        self._metering = metering
        self._prices = prices
        self._clock = clock
        self._max_unacknowledged = max_unacknowledged

    async def Record(  # type: ignore[override]  # a session writes by itself instead of yielding
        self,
        request_iterator: AsyncIterator[metering_pb2.RecordRequest],
        context: grpc.aio.ServicerContext[metering_pb2.RecordRequest, metering_pb2.RecordResponse],
    ) -> None:
        """Takes a reporter's events in."""
        async with ServerSession(request_iterator, context, metering_pb2.RecordResponse) as session:
            welcome = session.outbox.message.welcome
            welcome.metering.CopyFrom(self._peer)
            welcome.max_unacknowledged = self._max_unacknowledged
            session.outbox.flush()
            await RecordSession(session, self._metering, self._clock, self._max_unacknowledged).run()

    async def StreamUsage(
        self, request: metering_pb2.StreamUsageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[metering_pb2.StreamUsageResponse]:
        """Sends the ledger's rows from a cursor on."""
        selection = from_pb_filter(request.filter)
        check_filter(selection)
        after = read_cursor(request.cursor, await self._metering.head())
        async for page in self._metering.stream(after, selection, follow=request.follow):
            yield metering_pb2.StreamUsageResponse(
                entries=[to_pb_entry(entry) for entry in page.entries], cursor=write_cursor(page.position)
            )

    async def SumUsage(
        self, request: metering_pb2.SumUsageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> metering_pb2.SumUsageResponse:
        """Adds the ledger up."""
        selection = from_pb_filter(request.filter)
        check_filter(selection)
        totals = await self._metering.sum(selection, from_pb_dimensions(list(request.group_by)))
        return metering_pb2.SumUsageResponse(totals=[to_pb_total(total) for total in totals])

    async def WatchPrices(
        self, request: metering_pb2.WatchPricesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[metering_pb2.WatchPricesResponse]:
        """Sends the price table, and each change of it."""
        async for edition in self._prices.editions():
            yield to_pb_prices(edition)
