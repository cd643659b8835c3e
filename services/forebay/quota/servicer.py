"""QuotaService on the wire: unary calls, and the session in which a router makes them many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.budget_check import BudgetCheck
from forebay.quota.domain.reservations import Lease, Router
from forebay.quota.local_shares import LocalShares, Seat
from forebay.quota.messages import (
    from_pb_hold,
    from_pb_leases,
    from_pb_page_size,
    from_pb_reserve,
    from_pb_router,
    from_pb_settle,
    from_pb_tenant_id,
    require,
    to_pb_limit_state,
    to_pb_reservation_state,
)
from forebay.quota.service import Quota
from forebay.rpc.session import ServerSession
from forebay.rpc.status import from_pb_timestamp, to_pb_duration, to_pb_error
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import from_pb_trace, record_span

# Calls of one session that may be under way. A session that has more is not read from until some are answered.
MAX_CALLS = 4_096
# Messages of one session whose renewals may be under way; each has up to MAX_LEASES.
MAX_RENEWALS = 1

_Session = ServerSession[quota_pb2.SessionRequest, quota_pb2.SessionResponse]

log = get_logger("quota")


class QuotaServicer(quota_pb2_grpc.QuotaServiceServicer):
    """Takes calls apart, and puts answers together."""

    def __init__(
        self,
        quota: Quota,
        clock: Clock,
        lease_s: float,
        check: BudgetCheck | None = None,
        shares: LocalShares | None = None,
    ) -> None:
        """Prepares.

        Args:
            quota: the use cases.
            clock: for spans.
            lease_s: how long a reservation holds unless it is renewed.
            check: what budgets were against the ledger, for those who ask for the state of limits.
            shares: tells routers what they may admit by themselves; None for nothing.
        """
        self._quota = quota
        self._check = check
        self._shares = shares
        self._clock = clock
        self._lease = to_pb_duration(lease_s)
        # Calls of sessions, which outlive them: a settlement that has come is made, whatever happens to who sent it.
        self._calls: set[asyncio.Task[None]] = set()

    async def Reserve(self, request: quota_pb2.ReserveRequest, context: object) -> quota_pb2.ReserveResponse:
        """Holds what a request may use at most."""
        reservation = await self._reserve(request, from_pb_router(request.router))
        return quota_pb2.ReserveResponse(reservation=reservation)

    async def Renew(self, request: quota_pb2.RenewRequest, context: object) -> quota_pb2.RenewResponse:
        """Keeps leases alive."""
        router = from_pb_router(request.router)
        leases = from_pb_leases(request.leases, router)
        lost, stop = await self._quota.renew(router, leases), await self._quota.over_budget(leases)
        return quota_pb2.RenewResponse(lease=self._lease, lost=lost, stop=stop)

    async def Settle(self, request: quota_pb2.SettleRequest, context: object) -> quota_pb2.SettleResponse:
        """Replaces a reservation by what was used."""
        return await self._settle(request, from_pb_router(request.router))

    async def Peek(self, request: quota_pb2.PeekRequest, context: object) -> quota_pb2.PeekResponse:
        """Shows the state of a tenant's limits."""
        tenant_id = from_pb_tenant_id(request.tenant_id)
        states = await self._quota.peek(tenant_id, request.key_id, request.model)
        compared = self._check.comparisons.get(tenant_id, {}) if self._check is not None else {}
        own = f"tenant:{tenant_id}"
        return quota_pb2.PeekResponse(
            limits=[
                to_pb_limit_state(state, compared.get(state.limit) if state.subject == own else None)
                for state in states
            ]
        )

    async def ListReservations(
        self, request: quota_pb2.ListReservationsRequest, context: object
    ) -> quota_pb2.ListReservationsResponse:
        """Lists what a tenant holds, in order of the request id."""
        most = from_pb_page_size(request.page_size)
        tenant_id = from_pb_tenant_id(request.tenant_id)
        found = await self._quota.reservations(tenant_id, request.page_token, most + 1)
        return quota_pb2.ListReservationsResponse(
            reservations=map(to_pb_reservation_state, found[:most]),
            next_page_token=found[most - 1].order.request_id if len(found) > most else "",
        )

    async def Session(  # type: ignore[override]  # the stubs know handlers that yield only
        self,
        request_iterator: AsyncIterator[quota_pb2.SessionRequest],
        context: grpc.aio.ServicerContext[quota_pb2.SessionRequest, quota_pb2.SessionResponse],
    ) -> None:
        """Carries many calls of one router in each message."""
        async with ServerSession(request_iterator, context, quota_pb2.SessionResponse) as session:
            router: Router | None = None
            seat: Seat | None = None
            slots, renewing = asyncio.Semaphore(MAX_CALLS), asyncio.Semaphore(MAX_RENEWALS)
            try:
                async for request in session:
                    if router is None:
                        require((request.HasField("hello"), "hello", "must be in the first message"))
                        router = from_pb_router(request.hello.router)
                        session.outbox.message.welcome.lease.CopyFrom(self._lease)
                        session.outbox.flush()
                    if self._shares is not None and request.HasField("local_share_held"):
                        if seat is None:
                            seat = self._shares.join(router.id, request.local_share_held, partial(_send_share, session))
                        else:
                            self._shares.held(seat, request.local_share_held)
                    # A task runs up to its first wait in the order of creation, so reserves reach the counters first.
                    for reserve in request.reserves:
                        await self._start(slots, self._answer_reserve(session, reserve, router))
                    for settle in request.settles:
                        await self._start(slots, self._answer_settle(session, settle, router))
                    if request.renewals:
                        leases = from_pb_leases(request.renewals, router)
                        await self._start(renewing, self._answer_renewals(session, leases, router))
            finally:
                if self._shares is not None and seat is not None:
                    self._shares.leave(seat)

    async def _start(self, slots: asyncio.Semaphore, call: Coroutine[Any, Any, None]) -> None:
        await slots.acquire()
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(lambda _: slots.release())

    async def _answer_reserve(
        self, session: _Session, call: quota_pb2.SessionRequest.ReserveCall, router: Router
    ) -> None:
        result = quota_pb2.SessionResponse.ReserveResult(seq=call.seq)
        try:
            result.reservation.CopyFrom(await self._reserve(call.request, router))
        except MeshError as error:
            result.error.CopyFrom(to_pb_error(error))
        session.outbox.message.reserves.append(result)
        _flush(session)

    async def _answer_settle(
        self, session: _Session, call: quota_pb2.SessionRequest.SettleCall, router: Router
    ) -> None:
        result = quota_pb2.SessionResponse.SettleResult(seq=call.seq)
        try:
            result.settled.CopyFrom(await self._settle(call.request, router))
        except MeshError as error:
            result.error.CopyFrom(to_pb_error(error))
        session.outbox.message.settles.append(result)
        _flush(session)

    async def _answer_renewals(self, session: _Session, leases: list[Lease], router: Router) -> None:
        try:
            lost, stop = await self._quota.renew(router, leases), await self._quota.over_budget(leases)
        except MeshError as error:
            # The router renews again long before the leases lapse, and nothing is swept while the counters are away.
            log.warning("leases not renewed", router=router.id, leases=len(leases), error=error.reason)
            return
        session.outbox.message.renewals.lease.CopyFrom(self._lease)
        session.outbox.message.renewals.lost.extend(lost)
        session.outbox.message.renewals.stop.extend(stop)
        _flush(session)

    async def _reserve(self, request: quota_pb2.ReserveRequest, router: Router) -> quota_pb2.Reservation:
        order = from_pb_reserve(request, router)
        with self._span("quota.reserve", request):
            if request.HasField("admitted_at"):
                decision = await self._quota.charge(
                    request.tenant_id,
                    order,
                    from_pb_timestamp(request.admitted_at),
                    request.key_id,
                    request.model,
                    orphaned=order.router != router,
                )
            else:
                decision = await self._quota.reserve(request.tenant_id, order, request.key_id, request.model)
        return quota_pb2.Reservation(
            request_id=request.request_id,
            lease=self._lease,
            start_after=to_pb_duration(decision.start_after_ms / 1000) if decision.start_after_ms else None,
            warnings=decision.warnings,
        )

    async def _settle(self, request: quota_pb2.SettleRequest, router: Router) -> quota_pb2.SettleResponse:
        used = from_pb_settle(request)
        hold = from_pb_hold(request.hold, request.request_id, router, "hold") if request.HasField("hold") else None
        lease = Lease(request.tenant_id, request.request_id, hold)
        with self._span("quota.settle", request):
            applied = await self._quota.settle(lease, used, request.model)
        return quota_pb2.SettleResponse(applied=applied)

    @contextmanager
    def _span(self, name: str, request: quota_pb2.ReserveRequest | quota_pb2.SettleRequest) -> Iterator[None]:
        """Records the block as a part of the request's trace, whose context is in the message."""
        started, outcome = self._clock.now(), "OK"
        try:
            yield
        except MeshError as error:
            outcome = error.reason
            raise
        finally:
            record_span(
                name,
                from_pb_trace(request.trace),
                started,
                self._clock.now(),
                {
                    "forebay.request_id": request.request_id,
                    "forebay.tenant_id": request.tenant_id,
                    "forebay.outcome": outcome,
                },
            )


def _send_share(session: _Session, share: quota_pb2.LocalShare) -> None:
    session.outbox.message.local_share.CopyFrom(share)
    _flush(session)


def _flush(session: _Session) -> None:
    try:
        session.outbox.flush()
    except MeshError:
        # The session overflowed and is being ended by its own writer; the call was made all the same.
        log.warning("session overflowed")
