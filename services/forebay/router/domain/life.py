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
seed and position can be continued (P7): with penalties the engine would have to replay, which is still to come, so those fail if
tokens were delivered. An attempt that was refused or lost has used up its number: attempt ids are unique for ever.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.router.domain.stream import TokenStream


class State(enum.Enum):
    """Where a request stands."""

    ADMITTED = enum.auto()
    QUEUED = enum.auto()
    GRANTED = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    DONE = enum.auto()


class FinishReason(enum.Enum):
    """Why an answer ended; the numbers are the contract's."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4
    BUDGET = 5


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request, those of earlier attempts included."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The scheduler's leave to run one attempt on one worker.

    Attributes:
        worker_incarnation: the life of that worker that it is for.
        worker_address: where the worker's Execute session is reached.
        waited_s: how long the request has waited in all, as the scheduler counts.
        body: the grant as received, which the worker is shown and the router does not look into.
    """

    attempt: int
    worker_id: str
    worker_incarnation: int
    worker_address: str
    waited_s: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be charged for a request.

    Attributes:
        started: whether an engine is known to have had it; otherwise nothing is charged.
        gpu_time_s: of all attempts that said.
    """

    started: bool
    usage: Usage
    gpu_time_s: float


# What happens.


@dataclass(frozen=True, slots=True)
class Reserved:
    """The tenant's limits have room for it."""


@dataclass(frozen=True, slots=True)
class Granted:
    """It may run."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Rejected:
    """The scheduler will not have it run."""

    attempt: int
    error: MeshError


@dataclass(frozen=True, slots=True)
class FirstOutput:
    """The worker yields output: the payload has arrived."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker turned the payload away; no engine had it."""

    attempt: int
    error: MeshError


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The worker wants it continued elsewhere."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The session to its worker ended."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker's last word on an attempt."""

    attempt: int
    reason: FinishReason
    usage: Usage
    gpu_time_s: float
    error: MeshError | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """It is to end before its time.

    Attributes:
        reason: what the worker is told: CANCELLED or BUDGET.
        error: what the client is told; None ends the answer regularly with `reason`.
    """

    reason: FinishReason
    error: MeshError | None


@dataclass(frozen=True, slots=True)
class UsageOverdue:
    """The worker was told to stop and has not said for too long what was used."""


Event = (
    Reserved | Granted | Rejected | FirstOutput | Refused | HandedOver | Broken | Finished | Stop | UsageOverdue
)  # fmt: skip


# What is to be done.


@dataclass(frozen=True, slots=True)
class Submit:
    """Put this attempt into the scheduler's queue."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Start:
    """Bring the payload to the worker."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Decline:
    """Tell the scheduler that a grant is not used."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the scheduler that an attempt is over or no longer wanted."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell the worker to stop; its usage is still to come."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class End:
    """The request is over.

    Attributes:
        reason: why, when there was an answer.
        error: what the client is told instead of a regular end.
    """

    reason: FinishReason
    error: MeshError | None = None


Decision = Submit | Start | Decline | Withdraw | Cancel | End


class Life:
    """One request's state.

    Attributes:
        state: where it stands.
        attempt: the present execution, from 1; 0 before the first.
        base: tokens received before the present attempt.
        grant: of the present attempt; None unless GRANTED, RUNNING or STOPPING.
        excluded: workers that must not run it, because an attempt was lost there.
    """

    def __init__(self, stream: TokenStream, prompt_tokens: int, *, continuable: bool, max_attempts: int) -> None:
        """Begins a life.

        Args:
            stream: what the client gets.
            prompt_tokens: the size of the prompt.
            continuable: whether it can go on from tokens already delivered (P7).
            max_attempts: executions before it is given up.
        """
        self.state = State.ADMITTED
        self.attempt = 0
        self.base = 0
        self.grant: Grant | None = None
        self.excluded: list[str] = []
        self._stream = stream
        self._prompt_tokens = prompt_tokens
        self._continuable = continuable
        self._max_attempts = max_attempts
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
            case Broken(attempt) if self._in_flight(attempt):
                return (Withdraw(attempt), *self._lost("its worker was lost"))
            case HandedOver(attempt, reason) if self._in_flight(attempt):
                self._started = True
                return self._lost(f"its worker handed it over ({reason})")
            case Finished(attempt) if self._in_flight(attempt):
                return self._finished(event)
            case Stop():
                return self._stop(event)
            case UsageOverdue() if self.state is State.STOPPING:
                self._started = True
                return self._finish(self._end)
        return ()

    def settlement(self) -> Settlement:
        """Returns what is to be charged, as far as is known: the worker's count, or else what was received from it."""
        if not self._started:
            return Settlement(False, Usage(0), 0.0)
        usage = self._usage or Usage(self._prompt_tokens, 0, self._stream.received)
        return Settlement(True, usage, self._gpu_time_s)

    @property
    def usage(self) -> Usage:
        """What the client is told of its tokens."""
        return self._usage or Usage(self._prompt_tokens, 0, self._stream.received)

    def _is(self, attempt: int, *states: State) -> bool:
        return attempt == self.attempt and self.state in states

    def _in_flight(self, attempt: int) -> bool:
        return self._is(attempt, State.GRANTED, State.RUNNING, State.STOPPING)

    def _granted(self, grant: Grant) -> tuple[Decision, ...]:
        if self._is(grant.attempt, State.QUEUED):
            self.grant = grant
            self.state = State.GRANTED
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
            error = MeshError(Code.INTERNAL, error.reason, f"the worker refused the payload: {error.message}")
        return self._finish(End(FinishReason.ERROR, error))

    def _finished(self, event: Finished) -> tuple[Decision, ...]:
        self._started = True
        self._usage = event.usage
        self._gpu_time_s += event.gpu_time_s
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

    def _lost(self, why: str) -> tuple[Decision, ...]:
        """Goes on elsewhere than on the present worker."""
        if self.grant is not None and self.grant.worker_id not in self.excluded:
            self.excluded.append(self.grant.worker_id)
        return self._again(why)

    def _again(self, why: str) -> tuple[Decision, ...]:
        if self.state is State.STOPPING:
            return self._finish(self._end)
        received = self._stream.received
        if received >= self._stream.limit:
            # Only the word that it ended was lost.
            return self._finish(End(FinishReason.LENGTH))
        if self.attempt >= self._max_attempts or (received and not self._continuable):
            message = f"{why}, and it cannot be continued on another; try again"
            return self._finish(
                End(FinishReason.ERROR, MeshError(Code.UNAVAILABLE, "WORKER_LOST", message, retry_after=1))
            )
        return self._submit()

    def _submit(self) -> tuple[Decision, ...]:
        self.attempt += 1
        self.base = self._stream.received
        self.grant = None
        self.state = State.QUEUED
        return (Submit(self.attempt),)

    def _finish(self, end: End | None) -> tuple[Decision, ...]:
        assert end is not None
        self.state = State.DONE
        return (end,)


def deadline_exceeded() -> MeshError:
    """Returns the error of a request whose time has run out."""
    return MeshError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed before the answer was complete")
