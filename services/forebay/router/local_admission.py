"""Admission while quota cannot be reached, and what quota has to be told of it afterwards.

An admission is in a journal on the disk before its request goes on. It stays there until quota has charged it, and settled it if
the request was over by then: after that it is a reservation like any other. If the router dies, its next life finds in the
journal what quota has not charged, and names it to quota as the earlier life's, so that quota charges it once whoever says it and
how often. What has no settlement then has died with its router, and quota settles it from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict, ParseDict

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.journal import Journal
from forebay.policy.limits import Usage
from forebay.router.domain.local_share import Allowance, LocalAdmissions, LocalLimit, Order, Share
from forebay.rpc.status import from_pb_duration, to_pb_duration
from forebay.telemetry.logs import get_logger

log = get_logger("local_admission")


@dataclass(slots=True)
class Admission:
    """What quota is to be told of one request.

    Attributes:
        reserve: to be charged.
        settle: to be settled then, if the request is over.
    """

    reserve: quota_pb2.ReserveRequest
    settle: quota_pb2.SettleRequest | None = None


class LocalAdmission:
    """This router's part of the limits and what it has made of it.

    Attributes:
        owed: what quota has not charged yet, by request id; what earlier lives have left is among it.
    """

    def __init__(self, journal: Journal, router: common_pb2.Peer, clock: Clock) -> None:
        """Takes up the journal; it is closed by whoever opened it."""
        self._journal = journal
        self._router = router
        self._clock = clock
        self._admissions = LocalAdmissions()
        self._epoch_s = clock.now() - clock.monotonic()
        self._until = 0.0
        self._spoke_at = 0.0
        self._number = 0
        self._alone = False
        self.owed: dict[str, Admission] = {}
        self._journalled = bool(journal.left)
        now = self._now()
        for record in journal.left:
            # A life whose clock was ahead has written of times that have not come.
            at = min(record.get("at", now), now)
            if "reserve" in record:
                reserve = ParseDict(record["reserve"], quota_pb2.ReserveRequest())
                self.owed[reserve.request_id] = Admission(reserve)
                self._admissions.restore(reserve.request_id, record["taken"], at)
            elif "settle" in record:
                settle = ParseDict(record["settle"], quota_pb2.SettleRequest())
                if settle.request_id in self.owed:
                    self.owed[settle.request_id].settle = settle
            elif self.owed.pop(record["charged"], None):
                self._admissions.charged(record["charged"], at)

    def offers(self, tenant_id: str) -> bool:
        """Whether a tenant may be admitted here at all, as quota said last and not too long ago."""
        return self._clock.monotonic() < self._until and tenant_id in self._admissions.share.allowances

    async def admit(self, request: quota_pb2.ReserveRequest) -> None:
        """Admits a request and completes what quota is to be told of it; durable on return.

        Raises:
            MeshError: as `LocalAdmissions.admit`; JOURNAL_UNAVAILABLE, and then it is owed as one that never ran.
        """
        now = self._now()
        order = Order(
            request.request_id,
            request.tenant_id,
            request.key_id,
            request.model,
            request.prompt_tokens,
            request.max_completion_tokens,
        )
        taken = self._admissions.admit(order, now)
        if not self._alone:
            self._alone = True
            seconds = round(self._until - self._clock.monotonic())
            log.warning(
                "quota is away; admitting by this router's part", parts=self._admissions.share.parts, seconds=seconds
            )
        request.router.CopyFrom(self._router)
        request.admitted_at.FromNanoseconds(int(self._clock.now() * 1e9))
        self.owed[request.request_id] = Admission(request)
        self._journalled = True
        self._journal.append(reserve=MessageToDict(request), taken=taken, at=now)
        try:
            await self._journal.synced()
        except BaseException:  # nobody will settle it
            self.settle(quota_pb2.SettleRequest(request_id=request.request_id, tenant_id=request.tenant_id))
            raise

    def settle(self, request: quota_pb2.SettleRequest) -> bool:
        """Takes note of a settlement; returns whether it is kept until the request is charged."""
        started = 1 if request.started else 0
        self._admissions.settle(
            request.request_id,
            Usage(started, started * request.prompt_tokens, started * request.completion_tokens),
            self._now(),
        )
        admission = self.owed.get(request.request_id)
        if admission is None:
            return False
        admission.settle = request
        self._journal.append(settle=MessageToDict(request))
        return True

    def charged(self, request_id: str) -> None:
        """Quota has all that it is to be told of a request. Others than those that are owed are passed over."""
        if self.owed.pop(request_id, None):
            now = self._now()
            self._admissions.charged(request_id, now)
            self._journal.append(charged=request_id, at=now)

    def refused(self, request_id: str, error: MeshError) -> None:
        """Quota will never charge a request: its tenant is gone, for one."""
        log.error("admission not charged", request_id=request_id, reason=error.reason, message=error.message)
        self.charged(request_id)

    def tidy(self) -> None:
        """Forgets what counts no longer; to be called every now and then."""
        self._admissions.tidy(self._now())
        if self._journalled and not self.owed and not self._admissions:
            self._journalled = False
            self._journal.clear()

    def hello(self) -> quota_pb2.LocalShareHeld:
        """Returns what to say at the beginning of a session, which is now."""
        self._number = 0
        if self._clock.monotonic() >= self._until:
            self._admissions.share = Share()
        return self._held()

    def take_up(self, message: quota_pb2.LocalShare) -> quota_pb2.LocalShareHeld:
        """Takes what this router may admit from now on; returns the acknowledgement to be sent now."""
        self._until = self._spoke_at + from_pb_duration(message.holds_for)
        self._admissions.share = from_pb_share(message)
        self._number = message.number
        self._alone = False
        return self._held()

    def _now(self) -> float:
        """Returns seconds since the epoch, as if the wall clock had not stepped since this process began."""
        return self._epoch_s + self._clock.monotonic()

    def _held(self) -> quota_pb2.LocalShareHeld:
        self._spoke_at = self._clock.monotonic()
        held = quota_pb2.LocalShareHeld(number=self._number, parts=self._admissions.share.parts)
        ago_s = self._now() - self._admissions.last_at
        if ago_s < 86_400:
            held.admitted_ago.CopyFrom(to_pb_duration(max(0.0, ago_s)))
        return held


def from_pb_share(message: quota_pb2.LocalShare) -> Share:
    """Returns a message's share."""
    return Share(
        message.parts,
        {
            allowance.tenant_id: Allowance(
                tuple(LocalLimit(limit.subject, limit.limit, limit.value) for limit in allowance.limits),
                allowance.nano_usd_per_request,
                allowance.nano_usd_per_million_prompt_tokens,
                allowance.nano_usd_per_million_completion_tokens,
            )
            for allowance in message.allowances
        },
    )
