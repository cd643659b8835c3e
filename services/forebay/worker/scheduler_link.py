"""The worker's session with the scheduler: it registers, takes batches, and reports service and room.

Departures leave at once; progress at most once a tick of 50 ms; the engine's state at least once a second. While no session is
open nothing is kept for it: the next one begins with all that the worker holds (rule P3).

What it holds it says after the welcome, when it has seen the scheduler's epoch: from then on it takes no grant of an earlier one,
so what it does not report will not run under one.
"""

from __future__ import annotations

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.rpc.leader import MAX_BACKOFF_S, LeaderChannel
from forebay.rpc.session import Outbox, SessionClient
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.roster import Entry
from forebay.worker.engine import Engine
from forebay.worker.messages import (
    from_pb_attempt,
    from_pb_expiry,
    to_pb_attempt,
    to_pb_capacity,
    to_pb_engine_state,
    to_pb_reason,
)
from forebay.worker.scheduler_reports import Departure
from forebay.worker.service import WorkerService

STATE_INTERVAL_S = 1.0


class SchedulerLink:
    """The handler of the Attach session, and the service's `SchedulerReports`."""

    def __init__(
        self,
        schedulers: LeaderChannel,
        service: WorkerService,
        engine: Engine,
        register: scheduler_pb2.AttachRequest.Register,
        clock: Clock,
    ) -> None:
        """Prepares; `register` says everything but the capacity, which is known once the engine has started."""
        self._schedulers = schedulers
        self._session = SessionClient(
            "attach",
            lambda: scheduler_pb2_grpc.SchedulerServiceStub(schedulers.channel).Attach(),
            scheduler_pb2.AttachRequest,
            self,
            max_backoff_s=MAX_BACKOFF_S,
        )
        self._service = service
        self._engine = engine
        self._register = register
        self._clock = clock
        # From the welcome on.
        self._outbox: Outbox[scheduler_pb2.AttachRequest] | None = None
        self._state_due = 0.0
        self._was_healthy = True
        service.scheduler = self

    async def run(self) -> None:
        """Keeps a session open until cancelled; begin when the engine has started."""
        await self._session.run()

    # --- the session's turns

    def opened(self, outbox: Outbox[scheduler_pb2.AttachRequest]) -> None:
        """Registers."""
        message = outbox.message
        message.register.CopyFrom(self._register)
        message.register.capacity.CopyFrom(to_pb_capacity(self._engine.capacity))
        message.register.highest_epoch = self._service.roster.epoch
        self._flush(outbox)

    def _welcomed(self, welcome: scheduler_pb2.Welcome) -> None:
        """Says all that the worker holds, to a scheduler that leads."""
        self._schedulers.welcomed(welcome.epoch, welcome.leader_address)
        self._service.roster.saw_epoch(welcome.epoch)
        outbox = self._outbox = self._session.outbox
        assert outbox is not None
        message = outbox.message
        for holding in self._service.holdings():
            message.running.add(
                ref=to_pb_attempt(holding.id),
                tenant_id=holding.tenant_id,
                kv_tokens=holding.kv_tokens,
                generated_tokens=holding.generated_tokens,
                started=holding.started,
            )
        message.running_complete = True
        message.draining = self._service.draining
        self._state_due = 0.0
        self.tick()

    def received(self, response: scheduler_pb2.AttachResponse) -> None:
        """Does what the scheduler says."""
        if response.HasField("welcome"):
            self._welcomed(response.welcome)
        service = self._service
        now = self._clock.monotonic()
        # First, because what is withdrawn may be drawn anew at once.
        for ref in response.withdrawals:
            service.roster.withdraw(from_pb_attempt(ref))
        for batch in response.batches:
            service.roster.saw_epoch(batch.epoch)
            service.announce([_from_pb_entry(entry, batch, now) for entry in batch.entries])
        for ref in response.evictions:
            service.evict(from_pb_attempt(ref))
        if response.drain:
            service.drain()

    def closed(self, error: MeshError) -> None:
        """Stops reporting, and looks elsewhere; what runs goes on."""
        self._outbox = None
        self._schedulers.lost(error)

    # --- what the service has to say

    def departed(self, departure: Departure) -> None:
        """Says that an attempt has ended."""
        if self._outbox is not None:
            self._outbox.message.departures.add(
                ref=to_pb_attempt(departure.id),
                generated_tokens=departure.generated_tokens,
                cached_tokens=departure.cached_tokens,
                reason=to_pb_reason(departure.ending),
                started=departure.scheduled,
            )
            self._flush(self._outbox)

    def expired(self, id: AttemptId) -> None:
        """Says that an entry's payload did not come."""
        if self._outbox is not None:
            self._outbox.message.expired.append(to_pb_attempt(id))
            self._flush(self._outbox)

    def draining(self) -> None:
        """Says that the worker takes no more."""
        if self._outbox is not None:
            self._outbox.message.draining = True
            self._flush(self._outbox)

    def health(self) -> None:
        """Says whether the worker can run what it is given, if that has changed."""
        if self._service.healthy != self._was_healthy:
            self.tick()

    def tick(self) -> None:
        """Reports progress, and the engine's state when it is due or when the worker's health has changed."""
        if self._outbox is None:
            return
        progress = self._service.take_progress()
        for item in progress:
            self._outbox.message.progress.add(
                ref=to_pb_attempt(item.id), generated_tokens=item.generated_tokens, prefilled=item.prefilled
            )
        now, healthy = self._clock.monotonic(), self._service.healthy
        state_due = now >= self._state_due or healthy != self._was_healthy
        if state_due:
            self._state_due, self._was_healthy = now + STATE_INTERVAL_S, healthy
            self._outbox.message.engine.CopyFrom(to_pb_engine_state(self._engine.state(), healthy=healthy))
        if progress or state_due:
            self._flush(self._outbox, len(progress) + 1)

    @staticmethod
    def _flush(outbox: Outbox[scheduler_pb2.AttachRequest], items: int = 1) -> None:
        try:
            outbox.flush(items)
        except MeshError:
            pass  # SESSION_OVERFLOW: the session ends itself and the next one tells everything anew


def _from_pb_entry(entry: scheduler_pb2.Batch.Entry, batch: scheduler_pb2.Batch, now: float) -> Entry:
    return Entry(
        id=from_pb_attempt(entry.ref),
        draw=(batch.epoch, batch.batch_id),
        tenant_id=entry.tenant_id,
        kv_tokens=entry.kv_tokens,
        expires_at=now + from_pb_expiry(entry),
    )
