"""One Record session: takes numbered events in, acknowledges them in order once they are durable."""

from __future__ import annotations

import asyncio
import re
from functools import partial

from forebay.api.metering.v1 import metering_pb2
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.metering.domain.event import check
from forebay.metering.domain.posting import Disposition
from forebay.metering.domain.window import Window
from forebay.metering.messages import from_pb_event
from forebay.metering.service import Metering
from forebay.rpc.session import ServerSession
from forebay.rpc.status import to_pb_error
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import from_pb_trace, record_span

_NAME = re.compile(r"[a-z0-9-]{1,63}")

log = get_logger("metering")


class RecordSession:
    """The events of one reporter on one stream.

    Acknowledgements gather in the outbox like everything else: one message says how far a whole commit has brought the session.
    A commit that fails ends the session, and the reporter sends again what was not acknowledged.
    """

    def __init__(
        self,
        session: ServerSession[metering_pb2.RecordRequest, metering_pb2.RecordResponse],
        metering: Metering,
        clock: Clock,
        max_unacknowledged: int,
    ) -> None:
        self._session = session
        self._metering = metering
        self._clock = clock
        self._window = Window(max_unacknowledged)
        self._reporter = ""
        self._all_settled = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns once the reporter has closed its side and all it sent is settled.

        Raises:
            MeshError: the reporter broke the rules of the session, or the ledger failed.
        """
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({reading, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            await (self._failed if self._failed.done() else reading)
        finally:
            reading.cancel()
            self._failed.cancel()

    async def _read(self) -> None:
        async for request in self._session:
            if not self._reporter:
                self._greet(request)
            for numbered in request.events:
                self._take(numbered)
        if not self._window.empty:
            await self._all_settled.wait()

    def _greet(self, request: metering_pb2.RecordRequest) -> None:
        self._reporter = request.hello.reporter.id
        if not _NAME.fullmatch(self._reporter):
            raise MeshError(
                Code.INVALID_ARGUMENT,
                "BAD_HELLO",
                "the first message must say who reports; the id is 1 to 63 of [a-z0-9-]",
            )

    def _take(self, numbered: metering_pb2.RecordRequest.NumberedEvent) -> None:
        seq, message, received_at = numbered.seq, numbered.event, self._clock.now()
        self._window.take(seq)
        self._all_settled.clear()
        try:
            report = from_pb_event(message)
            check(report)
        except MeshError as error:
            self._settle(seq, error)
            return
        self._metering.submit(report, partial(self._done, seq, message, received_at))

    def _done(
        self, seq: int, message: metering_pb2.UsageEvent, received_at: float, result: Disposition | MeshError
    ) -> None:
        if self._failed.done():
            return  # the session has ended; the reporter will ask again in another
        if isinstance(result, MeshError):
            self._failed.set_exception(result)
            return
        record_span(
            "metering.record",
            from_pb_trace(message.trace),
            received_at,
            self._clock.now(),
            {
                "forebay.request_id": message.request_id,
                "forebay.attempt": message.attempt,
                "forebay.disposition": result.value,
            },
        )
        conflict = MeshError(
            Code.FAILED_PRECONDITION, "TENANT_CONFLICT", "the request is another tenant's in the ledger"
        )
        self._settle(seq, conflict if result is Disposition.CONFLICT else None)

    def _settle(self, seq: int, rejection: MeshError | None) -> None:
        message = self._session.outbox.message
        if rejection is not None:
            log.warning(
                "event rejected", reporter=self._reporter, seq=seq, reason=rejection.reason, message=str(rejection)
            )
            message.rejections.add(seq=seq, error=to_pb_error(rejection))
        self._window.settle(seq)
        message.acknowledged_seq = self._window.acknowledged
        if self._window.empty:
            self._all_settled.set()
        try:
            self._session.outbox.flush()
        except MeshError:
            pass  # SESSION_OVERFLOW: the session's writer ends it
