"""The quota port over one batched session: reservations, settlements and renewals of all requests share its messages.

What a session carried when it broke is said again on the next one, with the same numbers: reservations are idempotent for this
router's incarnation, and so are settlements. A settlement is kept until quota acknowledges it, in a bounded queue whose oldest
entry is dropped and counted (its lease then lapses, and it is charged by what was observed).

While quota cannot be reached, tenants that fail open go on by this router's own part of their limits (`local_admission`); what
was admitted so is one more reservation that has no answer yet, and is asked for until quota has it.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from functools import partial

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.router.domain.decisions import Settlement
from forebay.router.domain.life import deadline_exceeded
from forebay.router.domain.local_share import unavailable
from forebay.router.local_admission import LocalAdmission
from forebay.router.quota import Reservation
from forebay.router.request import LiveRequests, Request, budget_spent, lease_lost
from forebay.rpc.session import Outbox, SessionClient
from forebay.rpc.status import from_pb_duration, from_pb_error, to_pb_duration
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import to_pb_trace

# Until quota says how long leases hold; a lease survives two lost renewals.
DEFAULT_LEASE_S = 30.0
RENEWALS_PER_LEASE = 3
RETRY_EVERY_S = 1.0
MAX_UNSETTLED = 10_000
# A first message after a long absence must stay well below the largest message.
_RESENT_AT_ONCE = 1_000

# What no repeat changes: the tenant is gone, or the charge is not ours.
_FINAL = {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.INVALID_ARGUMENT}

log = get_logger("quota_link")

QuotaOutbox = Outbox[quota_pb2.SessionRequest]


@dataclass(slots=True)
class _Reserve:
    """A reservation that is asked for; `sent` once it has left on any session, for then it may be held."""

    request: quota_pb2.ReserveRequest
    answer: asyncio.Future[Reservation]
    sent: bool = False


class _CutOff(Exception):
    """The session broke while a reservation waited that can be decided here."""


class QuotaLink:
    """Quota over its session; run `session.run` and `keep_alive` beside everything else.

    Attributes:
        session: the session, for the health check.
        dropped: settlements given up because the queue was full.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        router: common_pb2.Peer,
        live: LiveRequests,
        clock: Clock,
        wait_s: float,
        max_unsettled: int = MAX_UNSETTLED,
        local: LocalAdmission | None = None,
    ) -> None:
        """Prepares the link; nothing is sent before `session.run`.

        Args:
            channel: to quota.
            router: this router.
            live: the requests whose leases are kept alive.
            clock: paces renewals and repeats.
            wait_s: how long a reservation waits for an answer, and for quota to come back.
            max_unsettled: bound of the queue of settlements.
            local: admits tenants that fail open while quota cannot be reached; None to refuse them, too.
        """
        self._router = router
        self._live = live
        self._clock = clock
        self._wait_s = wait_s
        self._max_unsettled = max_unsettled
        self._local = local
        self._seq = itertools.count(1)
        self._reserves: dict[int, _Reserve] = {}
        self._settles: dict[int, quota_pb2.SettleRequest] = {}
        self._to_repeat: dict[int, None] = {}
        self._lease_s = DEFAULT_LEASE_S
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self.dropped = 0
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        self.session: SessionClient[quota_pb2.SessionRequest, quota_pb2.SessionResponse] = SessionClient(
            "quota", lambda: stub.Session(), quota_pb2.SessionRequest, self
        )
        self._to_charge: list[quota_pb2.ReserveRequest] = []
        if local is not None:
            self._to_charge = [admission.reserve for admission in local.owed.values()]

    async def reserve(self, request: Request) -> Reservation:
        """Holds prompt + max_tokens; as the port says."""
        seq, call = self._ask(self._to_pb_reserve(request))
        time_left = request.deadline_at - self._clock.monotonic()
        try:
            if not self.session.connected and self._decides(call):
                raise _CutOff
            async with asyncio.timeout(min(self._wait_s, time_left)):
                return await call.answer
        except (TimeoutError, _CutOff) as away:
            # A request whose own time is over says nothing of quota, and needs no admission.
            expired = isinstance(away, TimeoutError) and time_left < self._wait_s
            if self._local is None or expired or not self._decides(call):
                self._abandon(seq, call)
                raise (deadline_exceeded() if expired else unavailable()) from None
            return await self._admit(seq, call, self._local)
        except asyncio.CancelledError:
            self._abandon(seq, call)
            raise
        finally:
            self._reserves.pop(seq, None)

    def settle(self, request: Request, settlement: Settlement) -> None:
        """Charges what was used; as the port says."""
        message = quota_pb2.SettleRequest(
            request_id=request.id,
            tenant_id=request.caller.tenant.tenant_id,
            prompt_tokens=settlement.usage.prompt_tokens,
            completion_tokens=settlement.usage.completion_tokens,
            cached_tokens=settlement.usage.cached_tokens,
            gpu_time=to_pb_duration(settlement.gpu_time_s),
            started=settlement.started,
            trace=to_pb_trace(),
            model=request.payload.model,
            hold=self._to_pb_hold(request),
        )
        if self._local is None or not self._local.settle(message):
            self._settle(message)

    async def all_settled(self) -> None:
        """Returns once quota has acknowledged every settlement."""
        await self._all_settled.wait()

    async def keep_alive(self) -> None:
        """Renews all leases three times in a lease, and repeats what quota could not settle each second, until cancelled."""
        renewed_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(RETRY_EVERY_S)
            self._repeat_settles()
            self._charge()
            if self._local is not None:
                self._local.tidy()
            if self._clock.monotonic() - renewed_at >= self._lease_s / RENEWALS_PER_LEASE:
                renewed_at = self._clock.monotonic()
                self._renew()

    def opened(self, outbox: QuotaOutbox) -> None:
        """Says who calls, and again whatever has no answer."""
        outbox.message.hello.router.CopyFrom(self._router)
        if self._local is not None:
            outbox.message.local_share_held.CopyFrom(self._local.hello())
        for seq, call in self._reserves.items():
            self._send_reserve(seq, call)
        self._to_repeat = dict.fromkeys(self._settles)
        self._repeat_settles()
        self._charge()
        self._renew()
        _flush(outbox, 1)

    def received(self, response: quota_pb2.SessionResponse) -> None:
        """Takes results."""
        if response.HasField("welcome"):
            self._lease_s = from_pb_duration(response.welcome.lease) or DEFAULT_LEASE_S
        for reserved in response.reserves:
            call = self._reserves.get(reserved.seq)
            if call is None or call.answer.done():
                continue
            if reserved.WhichOneof("result") == "reservation":
                call.answer.set_result(Reservation(from_pb_duration(reserved.reservation.start_after)))
            else:
                call.answer.set_exception(from_pb_error(reserved.error))
        for settled in response.settles:
            if settled.WhichOneof("result") == "settled":
                self._settled(settled.seq)
            elif settled.error.code == common_pb2.ERROR_CODE_INVALID_ARGUMENT:
                log.error("settlement refused", seq=settled.seq, message=settled.error.message)
                self._settled(settled.seq)
            elif settled.seq in self._settles:
                self._to_repeat[settled.seq] = None
        if not self._settles:
            self._all_settled.set()
        for request_id in response.renewals.lost:
            if request_id in self._live:
                self._live[request_id].tell(lease_lost())
        for request_id in response.renewals.stop:
            if request_id in self._live:
                self._live[request_id].tell(budget_spent())
        if response.HasField("local_share") and self._local is not None and self.session.outbox is not None:
            self.session.outbox.message.local_share_held.CopyFrom(self._local.take_up(response.local_share))
            _flush(self.session.outbox, 1)

    def closed(self, error: MeshError) -> None:
        """Keeps what has no answer for the next session, but for what can be decided here."""
        for call in self._reserves.values():
            if not call.answer.done() and self._decides(call):
                call.answer.set_exception(_CutOff())

    def _ask(self, request: quota_pb2.ReserveRequest) -> tuple[int, _Reserve]:
        seq = next(self._seq)
        call = _Reserve(request, asyncio.get_running_loop().create_future())
        self._reserves[seq] = call
        self._send_reserve(seq, call)
        return seq, call

    def _decides(self, call: _Reserve) -> bool:
        """Whether this router may decide about a reservation; not about one that it is to have charged."""
        charge = call.request.HasField("admitted_at")
        return self._local is not None and not charge and self._local.offers(call.request.tenant_id)

    async def _admit(self, seq: int, call: _Reserve, local: LocalAdmission) -> Reservation:
        """Decides about a reservation without quota, which may have made it already: then it is the same one."""
        del self._reserves[seq]
        request = quota_pb2.ReserveRequest()
        request.CopyFrom(call.request)
        try:
            await local.admit(request)
        except BaseException:
            if request.request_id not in local.owed:
                self._abandon(seq, call)
            raise
        finally:
            if request.request_id in local.owed:
                self._to_charge.append(request)
        return Reservation()

    def _charge(self) -> None:
        """Asks for what was admitted here and is not asked for; quota's answer may take as long as it likes."""
        if self.session.outbox is None:
            return
        batch, self._to_charge = self._to_charge[:_RESENT_AT_ONCE], self._to_charge[_RESENT_AT_ONCE:]
        for request in batch:
            seq, call = self._ask(request)
            call.answer.add_done_callback(partial(self._charged, seq, request))

    def _charged(self, seq: int, request: quota_pb2.ReserveRequest, answer: asyncio.Future[Reservation]) -> None:
        self._reserves.pop(seq, None)
        if self._local is None or answer.cancelled():
            return
        error = answer.exception()
        admission = self._local.owed.get(request.request_id)
        if isinstance(error, MeshError):
            if error.code in _FINAL:
                self._local.refused(request.request_id, error)
            else:
                self._to_charge.append(request)
        elif admission is not None and admission.settle is not None:
            self._settle(admission.settle)
        else:
            self._local.charged(request.request_id)

    def _settled(self, seq: int) -> None:
        request = self._settles.pop(seq, None)
        if request is not None and self._local is not None:
            self._local.charged(request.request_id)

    def _send_reserve(self, seq: int, call: _Reserve) -> None:
        outbox = self.session.outbox
        if outbox is not None:
            outbox.message.reserves.add(seq=seq, request=call.request)
            call.sent = True
            _flush(outbox, 1)

    def _abandon(self, seq: int, call: _Reserve) -> None:
        """Gives back what a reservation may hold that nobody waits for any more."""
        self._reserves.pop(seq, None)
        refused = call.answer.done() and not call.answer.cancelled() and isinstance(call.answer.exception(), MeshError)
        if call.sent and not refused:
            self._settle(
                quota_pb2.SettleRequest(
                    request_id=call.request.request_id, tenant_id=call.request.tenant_id, trace=call.request.trace
                )
            )

    def _settle(self, request: quota_pb2.SettleRequest) -> None:
        if len(self._settles) >= self._max_unsettled:
            oldest = next(iter(self._settles))
            dropped = self._settles.pop(oldest)
            self._to_repeat.pop(oldest, None)
            self.dropped += 1
            if self._local is not None:
                self._local.charged(dropped.request_id)
            log.error("settlement dropped", request_id=dropped.request_id, dropped=self.dropped)
        seq = next(self._seq)
        self._settles[seq] = request
        self._all_settled.clear()
        self._to_repeat[seq] = None
        self._repeat_settles()

    def _repeat_settles(self) -> None:
        """Sends settlements that are yet to be sent, or to be sent again."""
        outbox = self.session.outbox
        if outbox is None or not self._to_repeat:
            return
        batch = list(itertools.islice(self._to_repeat, _RESENT_AT_ONCE))
        for seq in batch:
            del self._to_repeat[seq]
            if seq in self._settles:
                outbox.message.settles.add(seq=seq, request=self._settles[seq])
        _flush(outbox, len(batch))

    def _renew(self) -> None:
        outbox = self.session.outbox
        leases = [
            quota_pb2.RenewRequest.Lease(
                request_id=request.id,
                tenant_id=request.caller.tenant.tenant_id,
                completion_tokens=request.tokens.received,
                hold=self._to_pb_hold(request),
            )
            for request in self._live.values()
            if self._local is None or request.id not in self._local.owed
        ]
        if outbox is not None and leases:
            outbox.message.renewals.extend(leases)
            _flush(outbox, len(leases))

    def _to_pb_hold(self, request: Request) -> quota_pb2.Hold:
        """Returns what quota was asked to hold, for it to know again when its counters were lost."""
        hold = quota_pb2.Hold(
            key_id=request.caller.key.key_id,
            model=request.payload.model,
            prompt_tokens=len(request.payload.prompt_token_ids),
            max_completion_tokens=request.payload.max_tokens,
        )
        age_s = self._clock.monotonic() - request.admitted_at
        hold.reserved_at.FromMilliseconds(int((self._clock.now() - age_s) * 1000))
        return hold

    def _to_pb_reserve(self, request: Request) -> quota_pb2.ReserveRequest:
        return quota_pb2.ReserveRequest(
            request_id=request.id,
            tenant_id=request.caller.tenant.tenant_id,
            key_id=request.caller.key.key_id,
            model=request.payload.model,
            prompt_tokens=len(request.payload.prompt_token_ids),
            max_completion_tokens=request.payload.max_tokens,
            trace=to_pb_trace(),
        )


def _flush(outbox: QuotaOutbox, items: int) -> None:
    try:
        outbox.flush(items)
    except MeshError:
        # The session overflowed and is being ended; the next one is told all that has no answer.
        pass
