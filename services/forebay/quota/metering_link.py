"""What the ledger says of requests, followed from metering and kept beside their reservations.

The place in the ledger is kept with the counters, once all before it has been observed. What was observed when somebody died, and
the place not yet moved, is observed again, which changes nothing (`forebay.quota.domain.reservations.Observation`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import grpc

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.counters import CounterStore
from forebay.quota.domain.reservations import Observation
from forebay.quota.messages import from_pb_entry
from forebay.quota.prices import Prices
from forebay.rpc.status import from_rpc_error
from forebay.telemetry.logs import get_logger

# Longer than any reservation waits for its usage: older rows are of no use, and no long ledger is read from its beginning.
LOOK_BACK_S = 7_200
RETRY_S = 0.5
LOOK_UP_WITHIN_S = 5.0
LOOK_UPS_AT_ONCE = 16

log = get_logger("metering_link")


class MeteringLink:
    """Follows the ledger into the counters; `run` must be running."""

    def __init__(self, channel: grpc.aio.Channel, counters: CounterStore, clock: Clock, prices: Prices) -> None:
        self._stub: metering_pb2_grpc.MeteringServiceAsyncStub = metering_pb2_grpc.MeteringServiceStub(channel)
        self._counters = counters
        self._clock = clock
        self._prices = prices
        self._trouble = ""
        self._looking_up = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

    async def look_up(self, request_id: str) -> None:
        """Observes what the ledger has of one request, whose reservation was not there when its rows came by.

        Raises:
            MeshError: metering cannot be reached.
        """
        request = metering_pb2.StreamUsageRequest()
        request.filter.request_ids.append(request_id)
        async with self._looking_up:
            try:
                async for page in self._stub.StreamUsage(request, timeout=LOOK_UP_WITHIN_S):
                    await self._observe(page)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

    async def run(self) -> None:
        """Follows the ledger, and goes on from where it was after each end, until cancelled."""
        while True:
            try:
                if self._prices.table is not None:  # else what is observed would cost nothing, for ever
                    await self._follow()
            except MeshError as error:
                if error.reason != self._trouble:
                    log.warning("ledger not followed", reason=error.reason, message=error.message)
                self._trouble = error.reason
            await self._clock.sleep(RETRY_S)

    async def _follow(self) -> None:
        request = metering_pb2.StreamUsageRequest(cursor=await self._counters.usage_cursor(), follow=True)
        request.filter.finished_from.FromSeconds(int(self._clock.now()) - LOOK_BACK_S)
        call = self._stub.StreamUsage(request)
        try:
            async for page in call:
                await self._observe(page)
                await self._counters.keep_usage_cursor(page.cursor)
                self._trouble = ""
        except grpc.aio.AioRpcError as error:
            ended = from_rpc_error(error)
            if ended.reason == "BAD_CURSOR":  # it is another ledger
                await self._counters.keep_usage_cursor("")
            raise ended from None
        finally:
            call.cancel()

    async def _observe(self, page: metering_pb2.StreamUsageResponse) -> None:
        by_tenant: defaultdict[str, list[Observation]] = defaultdict(list)
        for entry in page.entries:
            by_tenant[entry.event.tenant_id].append(from_pb_entry(entry, self._prices))
        await asyncio.gather(*(self._counters.observe(*of_tenant) for of_tenant in by_tenant.items()))
