"""The worker's use cases: attempts come from routers, steps from the engine, entries from the scheduler.

What comes is looked at here, and what follows from it is done in the `register`, which owns the attempts.

Everything is synchronous and on one event loop. Time comes from the clock; `tick` is called about every 50 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.telemetry.logs import get_logger
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.gpu_time import equal_shares
from forebay.worker.domain.grant import Payload
from forebay.worker.domain.roster import Entry, Roster
from forebay.worker.domain.usage import Ending
from forebay.worker.engine import Engine, FinishReason, Output, Step
from forebay.worker.event_log import EventLog
from forebay.worker.register import Register, Running
from forebay.worker.router_stream import RouterStream
from forebay.worker.scheduler_reports import Departure, Holding, Progress, SchedulerReports, Unheard
from forebay.worker.start import Start

DRAIN_GRACE_S = 30.0
CHECKPOINT_INTERVAL_S = 1.0

log = get_logger("worker")

_ENDINGS = {
    FinishReason.STOP: Ending.STOP,
    FinishReason.LENGTH: Ending.LENGTH,
    FinishReason.CANCELLED: Ending.CANCELLED,
    FinishReason.ERROR: Ending.ERROR,
}


class WorkerService:
    """One engine, shared by routers as the scheduler says.

    Attributes:
        roster: who may run here.
        started: whether the engine has been started, so that payloads are taken.
        busy_ns: the engine's measured time so far.
        unattributed_ns: the part of busy_ns in steps of attempts that had ended before; the account `mesh` (law 6).
        scheduler: who hears what happens; set by the link.
    """

    def __init__(
        self,
        engine: Engine,
        event_log: EventLog,
        roster: Roster,
        clock: Clock,
        isolation_key: Callable[[str], bytes | None],
        pool: str = "",
    ) -> None:
        """Prepares; `isolation_key` gives a tenant's, or None while its policy is not known."""
        self.roster = roster
        self.started = False
        self.busy_ns = 0
        self.unattributed_ns = 0
        self.scheduler: SchedulerReports = Unheard()
        self._engine = engine
        self._event_log = event_log
        self._clock = clock
        self._register = Register(engine, event_log, roster, clock, isolation_key, pool, self._departed)
        self._hand_over_at: float | None = None
        self._checkpoint_due = 0.0

    # --- readiness

    @property
    def engine_failed(self) -> bool:
        """Whether the engine has started and serves no more; it never will again."""
        return self.started and not self._engine.state().healthy

    @property
    def healthy(self) -> bool:
        """Whether it can run what it is given: the engine serves, and the event log would keep an attempt's event."""
        return self.started and not self.engine_failed and self._event_log.trouble is None

    @property
    def draining(self) -> bool:
        """Whether it takes no more."""
        return self.roster.draining

    @property
    def running(self) -> int:
        """How many attempts are in the register."""
        return len(self._register.attempts)

    @property
    def steps(self) -> int:
        """The engine's ticks so far."""
        return self._register.steps

    # --- from routers

    def start(self, stream: RouterStream, start: Start) -> None:
        """Runs a payload, or refuses it on its stream; the caller flushes.

        Raises:
            MeshError: REF_IN_USE; the router has lost count and its session must end.
        """
        if self._register.find(stream, start.ref) is not None:
            raise MeshError(
                Code.INVALID_ARGUMENT, "REF_IN_USE", f"ref {start.ref} names a running attempt; take a new one"
            )
        delivered = len(start.delivered_token_ids)
        payload = Payload(
            start.attribution.tenant_id, len(start.prompt_token_ids) + delivered, start.sampling.max_tokens - delivered
        )
        try:
            self._check_ready()
            self.roster.admit(start.grant, payload)
        except MeshError as error:
            stream.refused(start.ref, error)
            self.scheduler.health()
            return
        self._register.add(stream, start)

    def cancel(self, stream: RouterStream, ref: int, ending: Ending) -> None:
        """Aborts one attempt of a session; nothing when it has ended. The caller flushes."""
        running = self._register.find(stream, ref)
        if running is not None:
            self._register.abort(running, ending)

    def delivered(self, stream: RouterStream, ref: int, tokens: int) -> None:
        """Says that `tokens` of an attempt have reached its client."""
        running = self._register.find(stream, ref)
        if running is not None:
            self._engine.delivered(str(running.attempt.id), tokens)

    def session_ended(self, stream: RouterStream) -> None:
        """Aborts and meters all attempts of a session that is no more (rule P1)."""
        self._register.abandon(stream)

    # --- from the engine

    def step(self, step: Step) -> None:
        """Takes what one tick of the engine yielded: charges its time, and sends each router its part in one piece."""
        self._register.steps += 1
        time_ns = round((step.ended_at - step.started_at) * 1e9)
        self.busy_ns += time_ns
        attempts = self._register.attempts
        if not step.participants:
            self.unattributed_ns += time_ns
        for name, share_ns in zip(step.participants, equal_shares(time_ns, len(step.participants)), strict=True):
            running = attempts.get(name)
            if running is None:
                self.unattributed_ns += share_ns
            else:
                running.attempt.stepped(share_ns, step.started_at)
        touched: dict[RouterStream, None] = {}
        for output in step.outputs:
            running = attempts.get(output.attempt_id)
            if running is None:
                continue  # it ended while this was computed
            running.attempt.generated(output.completion_tokens, output.cached_tokens, step.ended_at)
            touched[running.stream] = None
            if output.finish is None:
                running.stream.output(running.start.ref, output, None)
            else:
                self._finish(running, output, output.finish)
        for stream in touched:
            stream.flush(self.steps)

    def _finish(self, running: Running, output: Output, reason: FinishReason) -> None:
        if reason is FinishReason.ERROR and self.engine_failed:
            self._register.hand_over(running, "ENGINE_FAILED")
            return
        error = None
        if reason is FinishReason.ERROR:
            message = f"the engine failed on this request ({output.error or 'it does not say why'}); try again"
            error = MeshError(Code.INTERNAL, "ENGINE_ERROR", message)
        elif reason is FinishReason.CANCELLED:
            error = MeshError(Code.UNAVAILABLE, "ENGINE_GAVE_UP", "the engine gave the request up; try again")
        finish = self._register.end(running, _ENDINGS[reason], error)
        running.stream.output(running.start.ref, output, finish)

    # --- from the scheduler

    def announce(self, entries: Sequence[Entry]) -> None:
        """Takes the entries of a batch."""
        for entry in entries:
            if not self.roster.announce(entry):
                self.scheduler.expired(entry.id)

    def evict(self, id: AttemptId) -> None:
        """Hands an attempt over, or frees its entry when its payload has not come."""
        running = self._register.attempts.get(str(id))
        if running is None:
            if self.roster.withdraw(id):
                self.scheduler.expired(id)
        else:
            self._register.hand_over(running, "EVICTED")
            running.stream.flush(self.steps)

    def holdings(self) -> list[Holding]:
        """Returns all that it holds, for a session that opens."""
        pending = [
            Holding(entry.id, entry.tenant_id, entry.kv_tokens, 0, started=False) for entry in self.roster.pending
        ]
        attempts = [running.attempt for running in self._register.attempts.values()]
        return pending + [
            Holding(a.id, a.attribution.tenant_id, a.kv_tokens, a.generated_tokens, started=True) for a in attempts
        ]

    def take_progress(self) -> list[Progress]:
        """Returns how far attempts have come, for those that have since the last time."""
        progress = []
        for running in self._register.attempts.values():
            attempt = running.attempt
            if attempt.generated_tokens > running.reported:
                running.reported = attempt.generated_tokens
                progress.append(Progress(attempt.id, attempt.generated_tokens, attempt.prefilled))
        return progress

    # --- from time, policies and operators

    def policies_changed(self) -> None:
        """Runs the payloads whose tenant has become known."""
        self._register.try_all()
        self._register.flush()

    def tick(self) -> None:
        """Ends what is out of time: batch entries, payloads that wait, clients' deadlines, a drain's grace; and checkpoints."""
        now = self._clock.monotonic()
        for id in self.roster.expire(now):
            self.scheduler.expired(id)
        for running in list(self._register.attempts.values()):
            if running.awaits is not None and running.await_until <= now:
                self._register.give_back(running, running.awaits)
            elif running.deadline is not None and running.deadline <= now:
                self._register.abort(running, Ending.CANCELLED)
        if self.engine_failed:
            self._hand_over_all("ENGINE_FAILED")
        elif self._hand_over_at is not None and self._hand_over_at <= now:
            self._hand_over_all("DRAINING")
        if self._checkpoint_due <= now:
            self._checkpoint_due = now + CHECKPOINT_INTERVAL_S
            self._register.checkpoint()
        self._register.flush()

    def drain(self, grace: float = DRAIN_GRACE_S) -> None:
        """Takes no more, and after `grace` seconds hands over what still runs. Idempotent; the earliest end counts."""
        end = self._clock.monotonic() + grace
        self._hand_over_at = end if self._hand_over_at is None else min(end, self._hand_over_at)
        if not self.roster.draining:
            self.roster.draining = True
            log.info("draining", grace_s=grace, running=self.running)
            self.scheduler.draining()

    # --- inside

    def _check_ready(self) -> None:
        if not self.started or self.engine_failed:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_NOT_READY", "the worker's engine does not serve; ask for another")
        if (trouble := self._event_log.trouble) is not None:
            raise trouble

    def _departed(self, departure: Departure) -> None:
        self.scheduler.departed(departure)
        if departure.ending is None:
            self.scheduler.health()

    def _hand_over_all(self, reason: str) -> None:
        if self._register.attempts:
            log.warning("handing over", reason=reason, attempts=self.running)
        for running in list(self._register.attempts.values()):
            self._register.hand_over(running, reason)
