"""UsageService on the wire: a tenant's own rows of the ledger, which metering keeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.router import bounds
from forebay.router.access import Access, Caller
from forebay.router.domain.life import deadline_exceeded
from forebay.router.intake import Intake
from forebay.router.request import draining
from forebay.router.usage_cursor import UsageCursors
from forebay.rpc.status import from_rpc_error
from forebay.rpc.unread import UnreadMessage
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import to_headers

FULL_NAME = "forebay.api.router.v1.UsageService"

DEFAULT_DEADLINE_S = 30.0
# Each stream that follows reads the ledger after every commit.
MAX_STREAMS = 16

Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger("usage")


class UsageServicer(router_pb2_grpc.UsageServiceServicer):
    """Checks the key, fixes the tenant, and forwards."""

    def __init__(self, access: Access, intake: Intake, metering: grpc.aio.Channel, cursors: UsageCursors) -> None:
        """Serves whom `intake` lets in, and while `access` has no objection, from the ledger behind `metering`."""
        self._access = access
        self._intake = intake
        self._cursors = cursors
        self._metering = metering_pb2_grpc.MeteringServiceStub(metering)
        self._streams: Counter[str] = Counter()
        self._following: set[grpc.aio.UnaryStreamCall[Any, Any]] = set()
        self._draining = False

    def drain(self) -> None:
        """Refuses what comes and ends the streams that follow, which would never end: UNAVAILABLE, DRAINING."""
        self._draining = True
        for call in self._following:
            call.cancel()

    async def StreamUsage(  # type: ignore[override]
        self, unread: UnreadMessage, context: Context
    ) -> AsyncIterator[router_pb2.StreamUsageResponse]:
        """Forwards a stream of the caller's entries; one that follows ends with the client, or with the caller's leave.

        Nothing in it tells of other tenants: no position in the ledger, no worker, and a cursor that says nothing.
        RESOURCE_EXHAUSTED TOO_MANY_STREAMS beyond MAX_STREAMS of a tenant at a time.
        """
        received = await self._intake.receive(unread, context, router_pb2.StreamUsageRequest, bounds.STREAM_USAGE)
        caller, request = received.caller, received.message
        if self._draining:
            raise draining()
        tenant_id = caller.tenant.tenant_id
        if self._streams[tenant_id] >= MAX_STREAMS:
            raise _too_many_streams(tenant_id)
        cursor = self._cursors.open(tenant_id, request.cursor)
        call = self._metering.StreamUsage(
            metering_pb2.StreamUsageRequest(cursor=cursor, filter=_own(request.filter, caller), follow=request.follow),
            timeout=context.time_remaining(),
            metadata=to_headers(),
        )
        self._streams[tenant_id] += 1
        if request.follow:
            self._following.add(call)
        try:
            async for response in call:
                if (objection := self._access.objection(caller)) is not None:
                    raise objection
                yield router_pb2.StreamUsageResponse(
                    entries=[to_tenant(entry) for entry in response.entries],
                    cursor=self._cursors.seal(tenant_id, response.cursor),
                )
        except grpc.aio.AioRpcError as error:
            raise (draining() if self._draining else _told(error)) from None
        except asyncio.CancelledError:
            if self._draining and call.cancelled():
                raise draining() from None
            raise
        finally:
            call.cancel()
            self._following.discard(call)
            self._streams[tenant_id] -= 1
            if not self._streams[tenant_id]:
                del self._streams[tenant_id]

    async def SumUsage(self, unread: UnreadMessage, context: Context) -> router_pb2.SumUsageResponse:  # type: ignore[override]
        """Forwards a question for the caller's totals."""
        received = await self._intake.receive(unread, context, router_pb2.SumUsageRequest, bounds.SUM_USAGE)
        caller, request = received.caller, received.message
        remaining = context.time_remaining()
        try:
            response = await self._metering.SumUsage(
                metering_pb2.SumUsageRequest(filter=_own(request.filter, caller), group_by=request.group_by),
                timeout=DEFAULT_DEADLINE_S if remaining is None else remaining,
                metadata=to_headers(),
            )
        except grpc.aio.AioRpcError as error:
            raise _told(error) from None
        return router_pb2.SumUsageResponse(totals=response.totals)


def to_tenant(entry: metering_pb2.LedgerEntry) -> metering_pb2.LedgerEntry:
    """Returns a row of the ledger as its tenant may see it; the chain's hash goes, too, for it can be tried for the position."""
    shown = metering_pb2.LedgerEntry()
    shown.CopyFrom(entry)
    shown.correction = entry.correction or entry.corrects != 0
    for field in ("position", "corrects", "chain_hash"):
        shown.ClearField(field)
    shown.event.ClearField("worker")
    shown.event.ClearField("trace")
    return shown


def _own(asked: metering_pb2.UsageFilter, caller: Caller) -> metering_pb2.UsageFilter:
    """Returns what was asked for, of the caller's tenant and no other."""
    own = metering_pb2.UsageFilter()
    own.CopyFrom(asked)
    own.tenant_ids[:] = [caller.tenant.tenant_id]
    return own


def _told(error: grpc.aio.AioRpcError) -> MeshError:
    """Returns what metering answered; what gRPC says of the way to it names addresses, and is for the log."""
    told = from_rpc_error(error)
    if not told.reason.startswith("GRPC_"):
        return told
    if told.code is Code.DEADLINE_EXCEEDED:
        return deadline_exceeded()
    log.warning("metering does not answer", reason=told.reason, message=told.message)
    return MeshError(
        Code.UNAVAILABLE, "USAGE_UNAVAILABLE", "the ledger cannot be reached now; try again in 1 s", retry_after=1
    )


def _too_many_streams(tenant_id: str) -> MeshError:
    message = f"{MAX_STREAMS} usage streams of the tenant are open on this router, as many as it takes; end one first"
    violation = QuotaViolation(f"tenant:{tenant_id}", "usage_streams_per_router", MAX_STREAMS, MAX_STREAMS, 1)
    return MeshError(Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", message, retry_after=1, quota_violations=[violation])
