"""The life of one request, as rule P1 has it: the router alone owns it, and it ends exactly once.

```
ADMITTED ─ Reserved ─▶ QUEUED ─ Granted ─▶ GRANTED ─ FirstOutput ─▶ RUNNING ─ Finished ─▶ DONE
                         ▲                    │                        │
                         └── attempt + 1 ─────┴─ Refused, Broken, HandedOver
     QUEUED, GRANTED, RUNNING ─ Stop ─▶ STOPPING (where an engine may have it) ─ Finished, Broken, UsageOverdue ─▶ DONE
```

`Life.on` takes what has happened and returns what is to be done about it. It is total: any event may come in any state and in any
order, for the peers are other processes, and what comes too late changes nothing. Nothing here waits, so there is no moment at
which two things could both believe that they end the request.

Only the router starts a continuation (P1), and only a request whose next token depends on nothing but prompt, tokens so far,
seed and position can be continued (P7): with penalties the engine would have to replay, which is still to come, so those fail
if tokens were delivered, and the scheduler is asked not to evict them. An attempt that was refused or lost has used up its
number: attempt ids are unique for ever.

Money follows the attempts that an engine may have had (P5, P6). Each is reported when it ends, with the positions from where it
began to where the next will begin, so that together they bill each position once; the settlement is the sum of them. An attempt
counts from the moment its payload has left, because a session that broke does not tell what the worker had done.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from forebay.errors import Code, MeshError
from forebay.router.domain.decisions import (
    Cancel,
    Decision,
    Decline,
    End,
    Outcome,
    Report,
    Settlement,
    Start,
    Submit,
    Withdraw,
)
from forebay.router.domain.events import (
    EVICTED,
    Broken,
    Event,
    Finished,
    FinishReason,
    FirstOutput,
    Grant,
    Granted,
    HandedOver,
    Refused,
    Rejected,
    Reserved,
    Stop,
    Usage,
    UsageOverdue,
)
from forebay.router.domain.stream import TokenStream


class State(enum.Enum):
    """Where a request stands."""

    ADMITTED = enum.auto()
    QUEUED = enum.auto()
    GRANTED = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    DONE = enum.auto()


_OUTCOMES = {
    FinishReason.STOP: Outcome.COMPLETED,
    FinishReason.LENGTH: Outcome.COMPLETED,
    FinishReason.CANCELLED: Outcome.CANCELLED,
    FinishReason.ERROR: Outcome.FAILED,
    FinishReason.BUDGET: Outcome.BUDGET_STOPPED,
}


class Life:
    """One request's state.

    Attributes:
        state: where it stands.
        attempt: the present execution, from 1; 0 before the first.
        base: tokens received before the present attempt.
        grant: of the present attempt; None unless GRANTED, RUNNING or STOPPING.
        excluded: the worker that is to run it only if no other can soon, because the attempt before was lost there; None for
            none. Workers before that one may have come back by now.
        continued: whether an attempt before the present one may have reached an engine.
    """

    def __init__(self, stream: TokenStream, prompt_tokens: int, *, continuable: bool, max_attempts: int) -> None:
        """Begins a life.

        Args:
            stream: what the client gets.
            prompt_tokens: the size of the prompt.
            continuable: whether it can go on from tokens already delivered (P7).
            max_attempts: executions before it is given up, those that were evicted left out.
        """
        self.state = State.ADMITTED
        self.attempt = 0
        self.base = 0
        self.grant: Grant | None = None
        self.excluded: str | None = None
        self.continued = False
        self._stream = stream
        self._prompt_tokens = prompt_tokens
        self._continuable = continuable
        self._max_attempts = max_attempts
        self._evictions = 0
        self._started = False
        self._usage: Usage | None = None
        self._gpu_time_s = 0.0
        self._end: End | None = None

    def on(self, event: Event) -> tuple[Decision, ...]:
        """Takes what has happened; returns what is to be done, in order. `End` is among it exactly once in a life, and last."""
        match event:
            case Reserved() if self.state is State.ADMITTED:
                return self._submit()
            case Granted(grant):
                return self._granted(grant)
            case Rejected(attempt, error) if self._is(attempt, State.QUEUED):
                return self._finish(End(FinishReason.ERROR, error))
            case FirstOutput(attempt) if self._is(attempt, State.GRANTED, State.STOPPING):
                self._started = True
                self.state = State.RUNNING if self.state is State.GRANTED else self.state
            case Refused(attempt, error) if self._in_flight(attempt):
                return (Decline(attempt), *self._refused(error))
            case Broken(attempt, sent) if self._in_flight(attempt):
                report = (self._report(Outcome.LOST),) if sent else ()
                return (Withdraw(attempt), *report, *self._lost("its worker was lost"))
            case HandedOver(attempt, reason) if self._in_flight(attempt):
                return (self._report(Outcome.HANDED_OVER), *self._handed_over(reason))
            case Finished(attempt) if self._in_flight(attempt):
                return self._finished(event)
            case Stop():
                return self._stop(event)
            case UsageOverdue() if self.state is State.STOPPING:
                return (self._report(self._stopped), *self._finish(self._end))
        return ()

    def settlement(self) -> Settlement:
        """Returns what is to be charged."""
        if not self._started:
            return Settlement(False, Usage(0), 0.0)
        return Settlement(True, self.usage, self._gpu_time_s)

    @property
    def usage(self) -> Usage:
        """What is known of its tokens: the worker's count, or else what was received from it."""
        return self._usage or Usage(self._prompt_tokens, 0, self._stream.received)

    def _is(self, attempt: int, *states: State) -> bool:
        return attempt == self.attempt and self.state in states

    def _in_flight(self, attempt: int) -> bool:
        return self._is(attempt, State.GRANTED, State.RUNNING, State.STOPPING)

    def _granted(self, grant: Grant) -> tuple[Decision, ...]:
        if self._is(grant.attempt, State.QUEUED):
            self.grant = grant
            self.state = State.GRANTED
            self._stream.shorten(self.base + grant.max_tokens)
            return (Start(grant),)
        held = self.grant
        if self._in_flight(grant.attempt) and held is not None and held.worker_id == grant.worker_id:
            # The same grant once more: declining it would free the room that the running attempt takes up.
            return ()
        return (Decline(grant.attempt),)

    def _refused(self, error: MeshError) -> tuple[Decision, ...]:
        if error.code in (Code.ABORTED, Code.UNAVAILABLE):
            # A stale grant, or a worker without room just then: no reason to keep away from it.
            return self._again(f"its worker refused it ({error.reason})")
        if error.code not in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED):
            error = MeshError(
                Code.INTERNAL, error.reason, f"the worker refused the payload: {error.message}; try again"
            )
        return self._finish(End(FinishReason.ERROR, error))

    def _report(self, outcome: Outcome) -> Report:
        """Takes note that the present attempt may have reached an engine, and reports it."""
        assert self.grant is not None
        self._started = True
        return Report(self.grant, outcome, self.continued, self.base, self._stream.received)

    @property
    def _stopped(self) -> Outcome:
        budget = self._end is not None and self._end.reason is FinishReason.BUDGET
        return Outcome.BUDGET_STOPPED if budget else Outcome.CANCELLED

    def _finished(self, event: Finished) -> tuple[Decision, ...]:
        report = replace(
            self._report(_OUTCOMES[event.reason]),
            completion_to=max(self.base, event.usage.completion_tokens),
            cached_tokens=event.usage.cached_tokens,
            gpu_time_s=event.gpu_time_s,
            confirmed=True,
        )
        # What is billed as cached is what the first attempt found, and an attempt that was lost did not say.
        self._usage = replace(event.usage, cached_tokens=0) if self.continued else event.usage
        self._gpu_time_s += event.gpu_time_s
        return (report, *self._finished_as(event))

    def _finished_as(self, event: Finished) -> tuple[Decision, ...]:
        if event.reason in (FinishReason.STOP, FinishReason.LENGTH) and (self._end is None or self._end.error is None):
            return self._finish(End(event.reason))
        if self._end is not None:
            return self._finish(self._end)
        if event.reason is FinishReason.BUDGET:
            return self._finish(End(FinishReason.BUDGET))
        if event.reason is FinishReason.CANCELLED:
            # Nobody here asked for it: the worker keeps to the deadline, too.
            return self._finish(End(FinishReason.CANCELLED, event.error or deadline_exceeded()))
        error = event.error or MeshError(Code.INTERNAL, "ENGINE_FAILED", "the engine failed")
        return self._finish(End(FinishReason.ERROR, error))

    def _stop(self, stop: Stop) -> tuple[Decision, ...]:
        end = End(stop.reason, stop.error)
        match self.state:
            case State.ADMITTED:
                return self._finish(end)
            case State.QUEUED:
                return (Withdraw(self.attempt), *self._finish(end))
            case State.GRANTED | State.RUNNING:
                self.state = State.STOPPING
                self._end = end
                return (Cancel(stop.reason),)
        return ()

    def _handed_over(self, reason: str) -> tuple[Decision, ...]:
        why = f"its worker handed it over ({reason})"
        if reason != EVICTED:
            return self._lost(why)
        # Nothing is wrong with the worker, nor with the request, however often it makes room for others.
        self._evictions += 1
        return self._again(why)

    def _lost(self, why: str) -> tuple[Decision, ...]:
        """Goes on elsewhere than on the present worker."""
        return self._again(why, excluded=self.grant.worker_id if self.grant else None)

    def _again(self, why: str, excluded: str | None = None) -> tuple[Decision, ...]:
        if self.state is State.STOPPING:
            return self._finish(self._end)
        received = self._stream.received
        if received >= self._stream.limit:
            # Only the word that it ended was lost.
            return self._finish(End(FinishReason.LENGTH))
        if self.attempt - self._evictions >= self._max_attempts or (received and not self._continuable):
            message = f"{why}, and it cannot be continued on another; try again"
            return self._finish(
                End(FinishReason.ERROR, MeshError(Code.UNAVAILABLE, "WORKER_LOST", message, retry_after=1))
            )
        return self._submit(excluded)

    def _submit(self, excluded: str | None = None) -> tuple[Decision, ...]:
        self.attempt += 1
        self.base = self._stream.received
        self.continued = self._started
        self.excluded = excluded
        self.grant = None
        self.state = State.QUEUED
        return (Submit(self.attempt),)

    def _finish(self, end: End | None) -> tuple[Decision, ...]:
        assert end is not None
        self.state = State.DONE
        self._usage = self.usage  # whatever still comes is not counted
        return (end,)


def deadline_exceeded() -> MeshError:
    """Returns the error of a request whose time has run out."""
    message = "the deadline passed before the answer was complete; allow more time"
    return MeshError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message)
