"""What the ledger says of requests, followed from metering and kept beside their reservations.

The counters are told what all rows of a request come to. Most requests have one row. If a row corrects another, or is not of
the first attempt, the link asks metering for all rows of the request. So a budget follows a correction to the nano-dollar, and a
row that is observed twice changes nothing.

The place in the ledger is kept with the counters, once all before it has been observed. If quota dies before it has moved the
place, it observes those rows again (`forebay.quota.domain.reservations.Observation`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

import grpc

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.counters import CounterStore
from forebay.quota.domain.reservations import Observation
from forebay.quota.messages import from_pb_entries
from forebay.rpc.status import from_rpc_error
from forebay.telemetry.logs import get_logger

# Longer than any reservation waits for its usage: older rows are of no use, and no long ledger is read from its beginning.
LOOK_BACK_S = 7_200
RETRY_S = 0.5
LOOK_UP_WITHIN_S = 5.0
LOOK_UPS_AT_ONCE = 16
# As many requests as metering lets a question name.
MAX_REQUESTS = 1_000

log = get_logger("metering_link")


# By request, in order of position.
Rows = dict[str, list[metering_pb2.LedgerEntry]]


class MeteringLink:
    """Follows the ledger into the counters; `run` must be running."""

    def __init__(self, channel: grpc.aio.Channel, counters: CounterStore, clock: Clock) -> None:
        self._stub: metering_pb2_grpc.MeteringServiceAsyncStub = metering_pb2_grpc.MeteringServiceStub(channel)
        self._counters = counters
        self._clock = clock
        self._trouble = ""
        self._looking_up = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

    async def look_up(self, request_id: str) -> None:
        """Observes what the ledger has of one request, whose reservation was not there when its rows came by.

        Raises:
            MeshError: metering cannot be reached.
        """
        await self._observe(await self._rows_of([request_id]))

    async def run(self) -> None:
        """Follows the ledger, and goes on from where it was after each end, until cancelled."""
        while True:
            try:
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
                rows = _by_request(page.entries)
                known = {request_id: of_request for request_id, of_request in rows.items() if _is_all(of_request)}
                await self._observe(known | await self._rows_of([*(rows.keys() - known)]))
                await self._counters.keep_usage_cursor(page.cursor)
                self._trouble = ""
        except grpc.aio.AioRpcError as error:
            ended = from_rpc_error(error)
            if ended.reason == "BAD_CURSOR":  # it is another ledger
                await self._counters.keep_usage_cursor("")
            raise ended from None
        finally:
            call.cancel()

    async def _rows_of(self, request_ids: Sequence[str]) -> Rows:
        """Returns all rows of these requests, in order.

        Raises:
            MeshError: metering cannot be reached.
        """
        rows: Rows = {}
        for at in range(0, len(request_ids), MAX_REQUESTS):
            request = metering_pb2.StreamUsageRequest()
            request.filter.request_ids.extend(request_ids[at : at + MAX_REQUESTS])
            async with self._looking_up:
                try:
                    async for page in self._stub.StreamUsage(request, timeout=LOOK_UP_WITHIN_S):
                        for request_id, of_request in _by_request(page.entries).items():
                            rows.setdefault(request_id, []).extend(of_request)
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error) from None
        return rows

    async def _observe(self, rows: Rows) -> None:
        by_tenant: defaultdict[str, list[Observation]] = defaultdict(list)
        for of_request in rows.values():
            by_tenant[of_request[0].event.tenant_id].append(from_pb_entries(of_request))
        await asyncio.gather(*(self._counters.observe(*of_tenant) for of_tenant in by_tenant.items()))


def _by_request(entries: Iterable[metering_pb2.LedgerEntry]) -> Rows:
    rows: Rows = {}
    for entry in entries:
        rows.setdefault(entry.event.request_id, []).append(entry)
    return rows


def _is_all(rows: Sequence[metering_pb2.LedgerEntry]) -> bool:
    """Returns whether these are all rows of a request so far: its first attempt's first row alone.

    If a later attempt has a row already, the first attempt's row corrects it in the same commit: the later one no longer bills
    the prompt.
    """
    return len(rows) == 1 and rows[0].event.attempt == 1 and not rows[0].corrects
