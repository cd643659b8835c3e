"""The metering port over a Record session.

An attempt that ended without its worker's last word is reported at once. The others' reports gather for a second: by then the
worker's own event most likely is in the ledger, and metering has nothing to keep. They are sent all the same, since a worker can
be lost with its disk between its last word and metering.

A report is kept until metering acknowledges it, in a bounded queue whose oldest entry is dropped and counted; nothing is lost by
that as long as the worker reports. Numbers are those of a session: a new one numbers what is not acknowledged from 1 again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

import grpc
from google.protobuf import timestamp_pb2

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.router.domain.decisions import Report
from forebay.router.request import Request
from forebay.rpc.session import Outbox, SessionClient
from forebay.rpc.status import to_pb_duration
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import to_pb_trace, trace_id

GATHER_S = 1.0
MAX_REPORTS = 10_000

log = get_logger("metering_link")

MeteringOutbox = Outbox[metering_pb2.RecordRequest]


class MeteringLink:
    """Metering over its session; run `session.run` and `gather` beside everything else.

    Attributes:
        session: the session.
        dropped: reports given up because the queue was full.
    """

    def __init__(
        self, channel: grpc.aio.Channel, router: common_pb2.Peer, clock: Clock, max_reports: int = MAX_REPORTS
    ) -> None:
        """Prepares the link; nothing is sent before `session.run`.

        Args:
            channel: to metering.
            router: this router.
            clock: for times, and paces what gathers.
            max_reports: bound of the queue of reports.
        """
        self._router = router
        self._clock = clock
        self._max_reports = max_reports
        self._numbers = itertools.count(1)
        # All that is not acknowledged, by numbers of our own; of these, those that gather; those yet to be sent on this session;
        # those under way, in order.
        self._reports: dict[int, metering_pb2.UsageEvent] = {}
        self._gathering: dict[int, None] = {}
        self._unsent: dict[int, None] = {}
        self._sent: deque[int] = deque()
        self._window = 0
        self._acknowledged = 0
        self._all_recorded = asyncio.Event()
        self._all_recorded.set()
        self.dropped = 0
        stub = metering_pb2_grpc.MeteringServiceStub(channel)
        self.session: SessionClient[metering_pb2.RecordRequest, metering_pb2.RecordResponse] = SessionClient(
            "metering", lambda: stub.Record(), metering_pb2.RecordRequest, self
        )

    def report(self, request: Request, report: Report) -> None:
        """Brings a report to metering; as the port says."""
        if len(self._reports) >= self._max_reports:
            oldest = next(iter(self._reports))
            dropped = self._reports.pop(oldest)
            self._gathering.pop(oldest, None)
            self._unsent.pop(oldest, None)
            self.dropped += 1
            log.error("report dropped", request_id=dropped.request_id, attempt=dropped.attempt, dropped=self.dropped)
        number = next(self._numbers)
        self._reports[number] = self._to_pb_event(request, report)
        self._gathering[number] = None
        self._all_recorded.clear()
        if not report.confirmed:
            self._release()

    async def gather(self) -> None:
        """Sends what has gathered every second, until cancelled."""
        while True:
            await self._clock.sleep(GATHER_S)
            self._release()

    async def all_recorded(self) -> None:
        """Returns once metering has acknowledged every report."""
        self._release()
        await self._all_recorded.wait()

    def opened(self, outbox: MeteringOutbox) -> None:
        """Says who reports; the welcome says how many reports at a time."""
        self._unsent = dict.fromkeys(self._reports)
        self._gathering.clear()
        self._sent.clear()
        self._window = self._acknowledged = 0
        outbox.message.hello.reporter.CopyFrom(self._router)
        _flush(outbox, 1)

    def received(self, response: metering_pb2.RecordResponse) -> None:
        """Forgets what is acknowledged, and sends more."""
        if response.HasField("welcome"):
            self._window = response.welcome.max_unacknowledged
        for rejection in response.rejections:
            log.error("report rejected", seq=rejection.seq, reason=rejection.error.reason)
        while self._sent and self._acknowledged < response.acknowledged_seq:
            self._acknowledged += 1
            self._reports.pop(self._sent.popleft(), None)
        if not self._reports:
            self._all_recorded.set()
        self._send()

    def closed(self, error: MeshError) -> None:
        """Keeps what is not acknowledged for the next session."""

    def _release(self) -> None:
        """Sends what has gathered, too."""
        self._unsent |= self._gathering
        self._gathering.clear()
        self._send()

    def _send(self) -> None:
        outbox = self.session.outbox
        batch = list(itertools.islice(self._unsent, max(0, self._window - len(self._sent))))
        if outbox is None or not batch:
            return
        for number in batch:
            del self._unsent[number]
            self._sent.append(number)
            outbox.message.events.add(seq=self._acknowledged + len(self._sent), event=self._reports[number])
        _flush(outbox, len(batch))

    def _to_pb_event(self, request: Request, report: Report) -> metering_pb2.UsageEvent:
        tenant, payload, grant = request.caller.tenant, request.payload, report.grant
        now, prompt_tokens = self._clock.now(), len(payload.prompt_token_ids)
        started_at = now - (self._clock.monotonic() - request.granted_at)
        event = metering_pb2.UsageEvent(
            request_id=request.id,
            attempt=grant.attempt,
            source=metering_pb2.EVENT_SOURCE_ROUTER,
            tenant_id=tenant.tenant_id,
            key_id=request.caller.key.key_id,
            plan=tenant.plan,
            priced_by_plan=tenant.priced_by_plan,
            service_class=tenant.service_class.name.lower(),
            model=payload.model,
            adapter=payload.adapter,
            pool=tenant.pool,
            worker=common_pb2.Peer(id=grant.worker_id, incarnation=grant.worker_incarnation),
            prompt_tokens=prompt_tokens,
            cached_tokens=min(report.cached_tokens, prompt_tokens),
            completion_from=report.completion_from,
            completion_to=report.completion_to,
            gpu_time=to_pb_duration(report.gpu_time_s),
            queue_time=to_pb_duration(request.granted_at - request.admitted_at),
            started_at=_to_pb_timestamp(started_at),
            finished_at=_to_pb_timestamp(now),
            outcome=metering_pb2.Outcome.ValueType(report.outcome.value),
            trace_id=trace_id(request.phase),
            client_request_id=request.ask.client_request_id,
            labels=request.ask.labels,
            trace=to_pb_trace(request.phase),
        )
        if report.continued:
            # Which part of its time went into what was there before is not known here: none of it is billed.
            event.recomputed_tokens = max(0, prompt_tokens + report.completion_from - report.cached_tokens)
            event.recomputed_gpu_time.CopyFrom(event.gpu_time)
        elif report.completion_to and request.first_output_at is not None:
            event.time_to_first_token.CopyFrom(to_pb_duration(request.first_output_at - request.admitted_at))
        return event


def _to_pb_timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMicroseconds(round(seconds * 1e6))  # a float of seconds has no finer parts
    return timestamp


def _flush(outbox: MeteringOutbox, items: int) -> None:
    try:
        outbox.flush(items)
    except MeshError:
        # The session overflowed and is being ended; the next one is told all that is not acknowledged.
        pass
