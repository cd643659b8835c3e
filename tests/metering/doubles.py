"""What stands in for real parts in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.errors import MeshError
from forebay.metering.domain.event import UsageEvent
from forebay.metering.domain.posting import Disposition
from forebay.metering.domain.prices import PriceTable
from forebay.metering.ledger import MemoryLedger, ledger_unavailable
from forebay.metering.messages import to_pb_event
from forebay.metering.sqlite_ledger import SqliteLedger
from forebay.rpc.status import from_rpc_error

REPORTER = common_pb2.Peer(id="worker-1", incarnation=7)


class GatedLedger(MemoryLedger):
    """A ledger whose commits wait for a gate and can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.broken = False
        self.commits: list[int] = []

    async def append(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> list[Disposition]:
        self.reached.set()
        await self.gate.wait()
        if self.broken:
            raise ledger_unavailable()
        self.commits.append(len(reports))
        return await super().append(reports, prices, now_ns)


def limit_pages(ledger: SqliteLedger, pages: int) -> None:
    """Stands in for a disk with so many pages of room; no commit may be running."""
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")


async def settle() -> None:
    """Lets everything run that can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def refusal(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


class Reporter:
    """A Record session as a worker holds one, numbers and all."""

    def __init__(self, stub: Any) -> None:
        self._call = stub.Record()
        self._responses = aiter(self._call)
        self._sent = 0
        self.acknowledged = 0
        self.rejections: dict[int, str] = {}

    async def hello(self) -> metering_pb2.RecordResponse.Welcome:
        await self._call.write(metering_pb2.RecordRequest(hello=metering_pb2.RecordRequest.Hello(reporter=REPORTER)))
        return (await anext(self._responses)).welcome

    async def send(self, *events: UsageEvent, traceparent: str = "") -> None:
        request = metering_pb2.RecordRequest()
        for event in events:
            self._sent += 1
            message = request.events.add(seq=self._sent, event=to_pb_event(event)).event
            message.trace.traceparent = traceparent
        await self._call.write(request)

    async def send_raw(self, request: metering_pb2.RecordRequest) -> None:
        await self._call.write(request)

    async def all_acknowledged(self) -> None:
        while self.acknowledged < self._sent:
            await self.hear()

    async def hear(self) -> None:
        """Takes one message in."""
        self._hear(await anext(self._responses))

    async def close(self) -> None:
        """Closes the sending side and hears the rest."""
        await self._call.done_writing()
        await self._hear_all()

    def cancel(self) -> None:
        self._call.cancel()

    async def error(self) -> MeshError:
        """Returns what the session ended with."""
        return await refusal(self._hear_all())

    async def _hear_all(self) -> None:
        async for response in self._responses:
            self._hear(response)

    def _hear(self, response: metering_pb2.RecordResponse) -> None:
        self.acknowledged = max(self.acknowledged, response.acknowledged_seq)
        self.rejections |= {rejection.seq: rejection.error.reason for rejection in response.rejections}
