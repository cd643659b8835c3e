"""The worker's session with metering: it brings usage events until each is acknowledged.

Numbers are those of a session: a new one numbers what is not acknowledged from 1 again. An event may so be sent twice, and
counts once, because its identity is its attempt (law 2).
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf import timestamp_pb2

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.errors import MeshError
from forebay.rpc.session import Outbox, SessionClient
from forebay.rpc.status import to_pb_duration
from forebay.telemetry.logs import get_logger
from forebay.worker.domain.usage import Outcome, UsageEvent
from forebay.worker.event_log import EventLog
from forebay.worker.messages import to_pb_nanoseconds

log = get_logger("worker")

_OUTCOMES = {
    Outcome.COMPLETED: metering_pb2.OUTCOME_COMPLETED,
    Outcome.CANCELLED: metering_pb2.OUTCOME_CANCELLED,
    Outcome.FAILED: metering_pb2.OUTCOME_FAILED,
    Outcome.HANDED_OVER: metering_pb2.OUTCOME_HANDED_OVER,
    Outcome.BUDGET_STOPPED: metering_pb2.OUTCOME_BUDGET_STOPPED,
    Outcome.LOST: metering_pb2.OUTCOME_LOST,
}


class MeteringLink:
    """The handler of the Record session: reads the event log, and forgets there what is durable elsewhere."""

    def __init__(self, channel: grpc.aio.Channel, event_log: EventLog, reporter: common_pb2.Peer) -> None:
        stub = metering_pb2_grpc.MeteringServiceStub(channel)
        self._session = SessionClient("record", lambda: stub.Record(), metering_pb2.RecordRequest, self)
        self._event_log = event_log
        self._reporter = reporter
        self._outbox: Outbox[metering_pb2.RecordRequest] | None = None
        self._window = 0
        self._sent = 0
        self._acknowledged = 0
        self._emptied = asyncio.Event()
        event_log.listen(self._send)
        self._send()

    async def run(self) -> None:
        """Keeps a session open until cancelled."""
        await self._session.run()

    async def emptied(self) -> None:
        """Returns once every event is acknowledged."""
        await self._emptied.wait()

    @property
    def unacknowledged(self) -> int:
        """How many events metering has not acknowledged."""
        return len(self._event_log)

    # --- the session's turns

    def opened(self, outbox: Outbox[metering_pb2.RecordRequest]) -> None:
        """Says hello; events follow the welcome, which says how many at a time."""
        self._outbox = outbox
        self._window = self._sent = self._acknowledged = 0
        outbox.message.hello.reporter.CopyFrom(self._reporter)
        outbox.flush()

    def received(self, response: metering_pb2.RecordResponse) -> None:
        """Forgets what is acknowledged, and sends more."""
        if response.HasField("welcome"):
            self._window = response.welcome.max_unacknowledged
        for rejection in response.rejections:
            self._keep_for_operator(rejection)
        acknowledged = min(response.acknowledged_seq, self._sent)
        if acknowledged > self._acknowledged:
            self._event_log.acknowledge(acknowledged - self._acknowledged)
            self._acknowledged = acknowledged
        self._send()

    def closed(self, error: MeshError) -> None:
        """Stops sending; the log keeps what is not acknowledged."""
        self._outbox = None

    def _send(self) -> None:
        if len(self._event_log):
            self._emptied.clear()
        else:
            self._emptied.set()
        if self._outbox is None:
            return
        before = self._sent
        for event in self._event_log.unacknowledged(skip=self._sent - self._acknowledged):
            if self._sent - self._acknowledged >= self._window:
                break
            self._sent += 1
            self._outbox.message.events.add(seq=self._sent, event=to_pb_event(event))
        if self._sent > before:
            try:
                self._outbox.flush(self._sent - before)
            except MeshError:
                pass  # SESSION_OVERFLOW: the session ends itself, and the next one sends all of it again

    def _keep_for_operator(self, rejection: metering_pb2.RecordResponse.Rejection) -> None:
        """Has an event kept that metering will never record: it is worth money to somebody."""
        if not self._acknowledged < rejection.seq <= self._sent:
            return
        index = rejection.seq - self._acknowledged - 1
        event = next(self._event_log.unacknowledged(index))
        log.error(
            "usage event rejected",
            attempt_id=str(event.id),
            reason=rejection.error.reason,
            message=rejection.error.message,
        )
        self._event_log.reject(index)


def to_pb_event(event: UsageEvent) -> metering_pb2.UsageEvent:
    """Returns an event as metering takes it."""
    attribution, place = event.attribution, event.place
    recovered = event.outcome is Outcome.LOST
    first_token = event.time_to_first_token
    return metering_pb2.UsageEvent(
        request_id=event.id.request_id,
        attempt=event.id.attempt,
        source=metering_pb2.EVENT_SOURCE_WORKER_RECOVERY if recovered else metering_pb2.EVENT_SOURCE_WORKER,
        tenant_id=attribution.tenant_id,
        key_id=attribution.key_id,
        plan=attribution.plan,
        priced_by_plan=attribution.priced_by_plan,
        service_class=attribution.service_class,
        model=attribution.model,
        adapter=event.adapter,
        pool=place.pool,
        worker=common_pb2.Peer(id=place.worker_id, incarnation=place.incarnation),
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        completion_from=event.completion_from,
        completion_to=event.completion_to,
        recomputed_tokens=event.recomputed_tokens,
        gpu_time=to_pb_nanoseconds(event.gpu_time_ns),
        recomputed_gpu_time=to_pb_nanoseconds(event.recomputed_gpu_time_ns),
        queue_time=to_pb_duration(attribution.queue_time),
        time_to_first_token=None if first_token is None else to_pb_duration(first_token),
        started_at=_to_pb_timestamp(event.started_at),
        finished_at=_to_pb_timestamp(event.finished_at),
        outcome=_OUTCOMES[event.outcome],
        trace_id=event.trace.trace_id,
        client_request_id=attribution.client_request_id,
        labels=attribution.labels,
        trace=common_pb2.TraceContext(traceparent=event.trace.traceparent, tracestate=event.trace.tracestate),
    )


def _to_pb_timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMicroseconds(round(seconds * 1e6))  # a float of seconds has no finer parts
    return timestamp
