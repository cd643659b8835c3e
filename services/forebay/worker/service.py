"""The worker's use cases: attempts come from routers, steps from the engine, entries from the scheduler.

Who owns what: an attempt belongs to this service from `start` until `_end`, which every way to end goes through (finished,
cancelled, out of time, evicted, drained, engine failed, session broken). There it leaves the register, its usage event goes
to the event log, and the scheduler hears of the free room: exactly once, because whoever comes second no longer finds it.

Before the engine has it, an attempt awaits its tenant's policy, and then that the event log has kept its start (rule P5):
whatever dies after that, somebody knows of it. Until then all ends lead to `_give_back`, and no usage event follows.

Everything is synchronous and on one event loop. Time comes from the clock; `tick` is called about every 50 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forebay import killpoints
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.telemetry.logs import get_logger
from forebay.worker.domain.attempt import Attempt
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.gpu_time import equal_shares
from forebay.worker.domain.grant import Payload
from forebay.worker.domain.roster import Entry, Roster
from forebay.worker.domain.salt import cache_salt
from forebay.worker.domain.usage import Ending, Outcome, Place, Trace
from forebay.worker.engine import Engine, EngineRequest, FinishReason, Output, Step
from forebay.worker.event_log import EventLog
from forebay.worker.router_stream import Finish, RouterStream
from forebay.worker.scheduler_reports import Departure, Holding, Progress, SchedulerReports, Unheard
from forebay.worker.spans import record_attempt, trace_of
from forebay.worker.start import Start

DRAIN_GRACE_S = 30.0
CLOCK_SKEW_S = 60.0
CHECKPOINT_INTERVAL_S = 1.0
KEPT_WITHIN_S = 2.0  # an event log that takes longer to keep a start cannot be waited for

log = get_logger("worker")

_ENDINGS = {
    FinishReason.STOP: Ending.STOP,
    FinishReason.LENGTH: Ending.LENGTH,
    FinishReason.CANCELLED: Ending.CANCELLED,
    FinishReason.ERROR: Ending.ERROR,
}


@dataclass(slots=True, eq=False)
class _Running:
    """An attempt in the register.

    Attributes:
        trace: for the event of an attempt that is lost.
        deadline: monotonic seconds; None for none.
        awaits: while the engine does not have it, why it is refused if it does not come to that; None afterwards.
        await_until: monotonic seconds; until when.
        reported: tokens that the scheduler has heard of.
        checkpointed: GPU time and tokens of which the event log has heard.
    """

    attempt: Attempt
    start: Start
    stream: RouterStream
    trace: Trace
    deadline: float | None
    awaits: MeshError | None
    await_until: float
    reported: int = 0
    checkpointed: tuple[int, int] = (0, 0)


class WorkerService:
    """The register of attempts on one engine.

    Attributes:
        roster: who may run here.
        started: whether the engine has been started, so that payloads are taken.
        steps: the engine's ticks so far.
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
        self.steps = 0
        self.busy_ns = 0
        self.unattributed_ns = 0
        self.scheduler: SchedulerReports = Unheard()
        self._engine = engine
        self._event_log = event_log
        self._clock = clock
        self._isolation_key = isolation_key
        self._place = Place(roster.worker_id, roster.incarnation, pool)
        self._register: dict[str, _Running] = {}
        self._streams: dict[RouterStream, dict[int, _Running]] = {}
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
        return len(self._register)

    # --- from routers

    def start(self, stream: RouterStream, start: Start) -> None:
        """Runs a payload, or refuses it on its stream; the caller flushes.

        Raises:
            MeshError: REF_IN_USE; the router has lost count and its session must end.
        """
        refs = self._streams.setdefault(stream, {})
        if start.ref in refs:
            raise MeshError(
                Code.INVALID_ARGUMENT, "REF_IN_USE", f"ref {start.ref} names a running attempt; take a new one"
            )
        delivered = len(start.delivered_token_ids)
        payload = Payload(
            start.attribution.tenant_id, len(start.prompt_token_ids) + delivered, start.sampling.max_tokens - delivered
        )
        try:
            self._check_ready()
            if start.grant.epoch > (self._clock.now() + CLOCK_SKEW_S) * 1e6:
                # An epoch is about the time of an election; one from the future would shut out every real leader.
                raise MeshError(Code.INVALID_ARGUMENT, "BAD_EPOCH", "the grant's epoch lies in the future")
            self.roster.admit(start.grant, payload)
        except MeshError as error:
            stream.refused(start.ref, error)
            # At once: its router asks again in a moment, and would be granted the same worker until it has no attempt left.
            self.scheduler.health()
            return
        now = self._clock.monotonic()
        attempt = Attempt(
            start.grant.id,
            start.attribution,
            self._place,
            adapter=start.grant.adapter,
            prompt_tokens=len(start.prompt_token_ids),
            delivered_tokens=delivered,
            continues=start.continues,
            completion_from=start.completion_from,
            kv_tokens=start.grant.kv_tokens,
            received_at=now,
            started_at=self._clock.now(),
        )
        running = _Running(
            attempt,
            start,
            stream,
            trace_of(start.trace),
            deadline=None if start.remaining is None else now + start.remaining,
            awaits=_POLICY_UNKNOWN,
            await_until=now + start.grant.expires_in,
        )
        self._register[str(attempt.id)] = refs[start.ref] = running
        self._try_begin(running)

    def cancel(self, stream: RouterStream, ref: int, ending: Ending) -> None:
        """Aborts one attempt of a session; nothing when it has ended. The caller flushes."""
        running = self._streams.get(stream, {}).get(ref)
        if running is not None:
            self._abort(running, ending)

    def delivered(self, stream: RouterStream, ref: int, tokens: int) -> None:
        """Says that `tokens` of an attempt have reached its client."""
        running = self._streams.get(stream, {}).get(ref)
        if running is not None:
            self._engine.delivered(str(running.attempt.id), tokens)

    def session_ended(self, stream: RouterStream) -> None:
        """Aborts and meters all attempts of a session that is no more (rule P1)."""
        for running in list(self._streams.get(stream, {}).values()):
            self._abort(running, Ending.CANCELLED)
        self._streams.pop(stream, None)

    # --- from the engine

    def step(self, step: Step) -> None:
        """Takes what one tick of the engine yielded: charges its time, and sends each router its part in one piece."""
        self.steps += 1
        time_ns = round((step.ended_at - step.started_at) * 1e9)
        self.busy_ns += time_ns
        register = self._register
        if not step.participants:
            self.unattributed_ns += time_ns
        for name, share_ns in zip(step.participants, equal_shares(time_ns, len(step.participants)), strict=True):
            running = register.get(name)
            if running is None:
                self.unattributed_ns += share_ns
            else:
                running.attempt.stepped(share_ns, step.started_at)
        touched: dict[RouterStream, None] = {}
        for output in step.outputs:
            running = register.get(output.attempt_id)
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

    def _finish(self, running: _Running, output: Output, reason: FinishReason) -> None:
        if reason is FinishReason.ERROR and self.engine_failed:
            self._hand_over(running, "ENGINE_FAILED")
            return
        error = None
        if reason is FinishReason.ERROR:
            error = MeshError(Code.INTERNAL, "ENGINE_ERROR", output.error or "the engine failed on this request")
        finish = self._end(running, _ENDINGS[reason], error)
        running.stream.output(running.start.ref, output, finish)

    # --- from the scheduler

    def announce(self, entries: Sequence[Entry]) -> None:
        """Takes the entries of a batch."""
        for entry in entries:
            if not self.roster.announce(entry):
                self.scheduler.expired(entry.id)

    def evict(self, id: AttemptId) -> None:
        """Hands an attempt over, or frees its entry when its payload has not come."""
        running = self._register.get(str(id))
        if running is None:
            if self.roster.withdraw(id):
                self.scheduler.expired(id)
        else:
            self._hand_over(running, "EVICTED")
            running.stream.flush(self.steps)

    def holdings(self) -> list[Holding]:
        """Returns all that it holds, for a session that opens."""
        pending = [
            Holding(entry.id, entry.tenant_id, entry.kv_tokens, 0, started=False) for entry in self.roster.pending
        ]
        attempts = [running.attempt for running in self._register.values()]
        return pending + [
            Holding(a.id, a.attribution.tenant_id, a.kv_tokens, a.generated_tokens, started=True) for a in attempts
        ]

    def take_progress(self) -> list[Progress]:
        """Returns how far attempts have come, for those that have since the last time."""
        progress = []
        for running in self._register.values():
            attempt = running.attempt
            if attempt.generated_tokens > running.reported:
                running.reported = attempt.generated_tokens
                progress.append(Progress(attempt.id, attempt.generated_tokens, attempt.prefilled))
        return progress

    # --- from time, policies and operators

    def policies_changed(self) -> None:
        """Runs the payloads whose tenant has become known."""
        for running in list(self._register.values()):
            if running.awaits is _POLICY_UNKNOWN:
                self._try_begin(running)
        self._flush()

    def tick(self) -> None:
        """Ends what is out of time: batch entries, payloads that wait, clients' deadlines, a drain's grace; and checkpoints."""
        now = self._clock.monotonic()
        for id in self.roster.expire(now):
            self.scheduler.expired(id)
        for running in list(self._register.values()):
            if running.awaits is not None and running.await_until <= now:
                self._give_back(running, running.awaits)
            elif running.deadline is not None and running.deadline <= now:
                self._abort(running, Ending.CANCELLED)
        if self.engine_failed:
            self._hand_over_all("ENGINE_FAILED")
        elif self._hand_over_at is not None and self._hand_over_at <= now:
            self._hand_over_all("DRAINING")
        if self._checkpoint_due <= now:
            self._checkpoint_due = now + CHECKPOINT_INTERVAL_S
            self._checkpoint()
        self._flush()

    def drain(self, grace: float = DRAIN_GRACE_S) -> None:
        """Takes no more, and after `grace` seconds hands over what still runs. Idempotent; the earliest end counts."""
        end = self._clock.monotonic() + grace
        self._hand_over_at = end if self._hand_over_at is None else min(end, self._hand_over_at)
        if not self.roster.draining:
            self.roster.draining = True
            log.info("draining", grace_s=grace, running=self.running)
            self.scheduler.draining()

    # --- the life of an attempt

    def _check_ready(self) -> None:
        if not self.started or self.engine_failed:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_NOT_READY", "the worker's engine does not serve; ask for another")
        if (trouble := self._event_log.trouble) is not None:
            raise trouble

    def _try_begin(self, running: _Running) -> None:
        """Has an attempt's start kept once its tenant's salt is known: nothing runs unsalted (law 7)."""
        isolation_key = self._isolation_key(running.start.grant.tenant_id)
        if not isolation_key:
            return
        salt, attempt = cache_salt(isolation_key), running.attempt
        running.awaits, running.await_until = _START_NOT_KEPT, self._clock.monotonic() + KEPT_WITHIN_S

        def kept(error: MeshError | None) -> None:
            if self._register.get(str(attempt.id)) is not running:
                return  # it was given back meanwhile
            if error is None:
                self._run(running, salt)
            else:
                self._give_back(running, error)
                running.stream.flush(self.steps)

        self._event_log.begin(attempt.usage_event(Outcome.LOST, attempt.started_at, running.trace), kept)

    def _run(self, running: _Running, salt: str) -> None:
        """Gives an attempt to the engine."""
        start = running.start
        request = EngineRequest(
            attempt_id=str(running.attempt.id),
            prompt_token_ids=start.prompt_token_ids,
            delivered_token_ids=start.delivered_token_ids,
            held_text=start.held_text,
            sampling=start.sampling,
            cache_salt=salt,
            priority=start.grant.priority,
            adapter=start.grant.adapter,
        )
        try:
            self._engine.add(request)
        except MeshError as error:
            self._give_back(running, error)
            running.stream.flush(self.steps)
        else:
            killpoints.reached("worker.after_add")
            running.awaits = None

    def _give_back(self, running: _Running, error: MeshError) -> None:
        """Refuses an attempt that was admitted and never reached the engine; no usage event follows."""
        self._remove(running)
        self._event_log.withdraw(running.attempt.id)
        self.roster.release(running.attempt.id)
        self.scheduler.departed(Departure(running.attempt.id, 0, 0, None, scheduled=False))
        running.stream.refused(running.start.ref, error)
        self.scheduler.health()

    def _abort(self, running: _Running, ending: Ending) -> None:
        """Ends an attempt before the engine did, and tells its router what was used."""
        if running.awaits is not None:
            self._give_back(running, running.awaits)
            return
        self._engine.abort(str(running.attempt.id))
        running.stream.finished(running.start.ref, self._end(running, ending))

    def _hand_over(self, running: _Running, reason: str) -> None:
        """Ends an attempt that is to go on elsewhere; what it has yielded was said before."""
        if running.awaits is not None:
            self._give_back(running, running.awaits)
            return
        self._engine.abort(str(running.attempt.id))
        self._end(running, Ending.HANDED_OVER)
        running.stream.handed_over(running.start.ref, reason)

    def _hand_over_all(self, reason: str) -> None:
        if self._register:
            log.warning("handing over", reason=reason, attempts=self.running)
        for running in list(self._register.values()):
            self._hand_over(running, reason)

    def _end(self, running: _Running, ending: Ending, error: MeshError | None = None) -> Finish:
        """Ends an attempt that reached the engine: the one place where that happens."""
        attempt, now, monotonic = running.attempt, self._clock.now(), self._clock.monotonic()
        self._remove(running)
        self.roster.finish(attempt.id)
        trace = record_attempt(
            attempt, ending, running.start.sampling, running.start.trace, self.roster.worker_id, now, monotonic
        )
        self._event_log.finish(attempt.usage_event(ending.outcome, now, trace))
        self.scheduler.departed(
            Departure(attempt.id, attempt.generated_tokens, attempt.cached_tokens, ending, scheduled=attempt.scheduled)
        )
        return Finish(
            ending=ending,
            error=error,
            prompt_tokens=attempt.prompt_tokens,
            cached_tokens=min(attempt.cached_tokens, attempt.prompt_tokens),
            completion_tokens=attempt.completion_tokens,
            gpu_time_ns=attempt.gpu_time_ns,
            phases=attempt.phases(monotonic),
        )

    def _checkpoint(self) -> None:
        """Tells the event log what would stand if this process died now, of all attempts that have come further."""
        now, events = self._clock.now(), []
        for running in self._register.values():
            attempt = running.attempt
            reached = attempt.gpu_time_ns, attempt.completion_tokens
            if running.awaits is None and reached != running.checkpointed:
                running.checkpointed = reached
                events.append(attempt.usage_event(Outcome.LOST, now, running.trace))
        self._event_log.checkpoint(events)

    def _remove(self, running: _Running) -> None:
        del self._register[str(running.attempt.id)]
        del self._streams[running.stream][running.start.ref]

    def _flush(self) -> None:
        for stream in self._streams:
            stream.flush(self.steps)


_POLICY_UNKNOWN = MeshError(
    Code.UNAVAILABLE, "POLICY_UNKNOWN", "the tenant's policy has not reached this worker; ask for another"
)
_START_NOT_KEPT = MeshError(
    Code.UNAVAILABLE, "SPOOL_UNAVAILABLE", "the attempt's start was not kept before it ended; ask for another"
)
