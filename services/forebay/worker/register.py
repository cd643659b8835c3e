"""The register: every attempt from its admission to its end, of which there is one.

Before the engine has it, an attempt awaits its tenant's policy, and then that the event log has kept its start (rule P5):
whatever dies after that, somebody knows of it. Until then all ends lead to `give_back`, and no usage event follows. From then
on they lead to `end` (finished, cancelled, out of time, evicted, drained, engine failed, session broken). There it leaves the
register, its usage event goes to the event log, and the scheduler hears of the free room: exactly once, because whoever comes
second no longer finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forebay import killpoints
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.worker.domain.attempt import Attempt
from forebay.worker.domain.roster import Roster
from forebay.worker.domain.salt import cache_salt
from forebay.worker.domain.usage import Ending, Outcome, Place, Trace
from forebay.worker.engine import Engine, EngineRequest
from forebay.worker.event_log import EventLog
from forebay.worker.router_stream import Finish, RouterStream
from forebay.worker.scheduler_reports import Departure
from forebay.worker.spans import record_attempt, trace_of
from forebay.worker.start import Start

KEPT_WITHIN_S = 2.0  # an event log that takes longer to keep a start cannot be waited for


@dataclass(slots=True, eq=False)
class Running:
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


class Register:
    """The attempts of one engine, by name and by the session that they came with.

    Attributes:
        attempts: all of them, by name; changed here alone.
        steps: the engine's ticks so far, as streams are told.
    """

    def __init__(
        self,
        engine: Engine,
        event_log: EventLog,
        roster: Roster,
        clock: Clock,
        isolation_key: Callable[[str], bytes | None],
        pool: str,
        departed: Callable[[Departure], None],
    ) -> None:
        """Prepares; `isolation_key` gives a tenant's, or None while its policy is not known; `departed` hears of free room."""
        self.attempts: dict[str, Running] = {}
        self.steps = 0
        self._engine = engine
        self._event_log = event_log
        self._roster = roster
        self._clock = clock
        self._isolation_key = isolation_key
        self._place = Place(roster.worker_id, roster.incarnation, pool)
        self._departed = departed
        self._streams: dict[RouterStream, dict[int, Running]] = {}

    def add(self, stream: RouterStream, start: Start) -> None:
        """Takes an attempt that the roster has admitted, and begins it as soon as that can be."""
        now = self._clock.monotonic()
        attempt = Attempt(
            start.grant.id,
            start.attribution,
            self._place,
            adapter=start.grant.adapter,
            prompt_tokens=len(start.prompt_token_ids),
            delivered_tokens=len(start.delivered_token_ids),
            continues=start.continues,
            completion_from=start.completion_from,
            kv_tokens=start.grant.kv_tokens,
            received_at=now,
            started_at=self._clock.now(),
        )
        running = Running(
            attempt,
            start,
            stream,
            trace_of(start.trace),
            deadline=None if start.remaining is None else now + start.remaining,
            awaits=_POLICY_UNKNOWN,
            await_until=now + start.grant.expires_in,
        )
        self.attempts[str(attempt.id)] = running
        self._streams.setdefault(stream, {})[start.ref] = running
        self._try_begin(running)

    def find(self, stream: RouterStream, ref: int) -> Running | None:
        """Returns an attempt of a session, or None when it has ended."""
        return self._streams.get(stream, {}).get(ref)

    def abandon(self, stream: RouterStream) -> None:
        """Aborts all attempts of a session that is no more, and forgets it."""
        for running in list(self._streams.get(stream, {}).values()):
            self.abort(running, Ending.CANCELLED)
        self._streams.pop(stream, None)

    def flush(self) -> None:
        """Has every session send what was said."""
        for stream in self._streams:
            stream.flush(self.steps)

    # --- towards the engine

    def try_all(self) -> None:
        """Begins the attempts whose tenant has become known."""
        for running in list(self.attempts.values()):
            if running.awaits is _POLICY_UNKNOWN:
                self._try_begin(running)

    def _try_begin(self, running: Running) -> None:
        """Has an attempt's start kept once its tenant's salt is known: nothing runs unsalted (law 7)."""
        isolation_key = self._isolation_key(running.start.grant.tenant_id)
        if not isolation_key:
            return
        salt, attempt = cache_salt(isolation_key), running.attempt
        running.awaits, running.await_until = _START_NOT_KEPT, self._clock.monotonic() + KEPT_WITHIN_S

        def kept(error: MeshError | None) -> None:
            if self.attempts.get(str(attempt.id)) is not running:
                return  # it was given back meanwhile
            if error is None:
                self._run(running, salt)
            else:
                self.give_back(running, error)
                running.stream.flush(self.steps)

        self._event_log.begin(attempt.usage_event(Outcome.LOST, attempt.started_at, running.trace), kept)

    def _run(self, running: Running, salt: str) -> None:
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
            self.give_back(running, error)
            running.stream.flush(self.steps)
        else:
            killpoints.reached("worker.after_add")
            running.awaits = None

    def give_back(self, running: Running, error: MeshError) -> None:
        """Refuses an attempt that was admitted and never reached the engine; no usage event follows."""
        self._remove(running)
        self._event_log.withdraw(running.attempt.id)
        self._roster.release(running.attempt.id)
        self._departed(Departure(running.attempt.id, 0, 0, None, scheduled=False))
        running.stream.refused(running.start.ref, error)

    # --- the ends

    def abort(self, running: Running, ending: Ending) -> None:
        """Ends an attempt before the engine did, and tells its router what was used."""
        if running.awaits is not None:
            self.give_back(running, running.awaits)
            return
        self._engine.abort(str(running.attempt.id))
        running.stream.finished(running.start.ref, self.end(running, ending))

    def hand_over(self, running: Running, reason: str) -> None:
        """Ends an attempt that is to go on elsewhere; what it has yielded was said before."""
        if running.awaits is not None:
            self.give_back(running, running.awaits)
            return
        self._engine.abort(str(running.attempt.id))
        self.end(running, Ending.HANDED_OVER)
        running.stream.handed_over(running.start.ref, reason)

    def end(self, running: Running, ending: Ending, error: MeshError | None = None) -> Finish:
        """Ends an attempt that reached the engine: the one place where that happens."""
        attempt, now, monotonic = running.attempt, self._clock.now(), self._clock.monotonic()
        self._remove(running)
        self._roster.finish(attempt.id)
        trace = record_attempt(
            attempt, ending, running.start.sampling, running.start.trace, self._roster.worker_id, now, monotonic
        )
        self._event_log.finish(attempt.usage_event(ending.outcome, now, trace))
        self._departed(
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

    def checkpoint(self) -> None:
        """Tells the event log what would stand if this process died now, of all attempts that have come further."""
        now, events = self._clock.now(), []
        for running in self.attempts.values():
            attempt = running.attempt
            reached = attempt.gpu_time_ns, attempt.completion_tokens
            if running.awaits is None and reached != running.checkpointed:
                running.checkpointed = reached
                events.append(attempt.usage_event(Outcome.LOST, now, running.trace))
        self._event_log.checkpoint(events)

    def _remove(self, running: Running) -> None:
        del self.attempts[str(running.attempt.id)]
        del self._streams[running.stream][running.start.ref]


_POLICY_UNKNOWN = MeshError(
    Code.UNAVAILABLE, "POLICY_UNKNOWN", "the tenant's policy has not reached this worker; ask for another"
)
_START_NOT_KEPT = MeshError(
    Code.UNAVAILABLE, "SPOOL_UNAVAILABLE", "the attempt's start was not kept before it ended; ask for another"
)
