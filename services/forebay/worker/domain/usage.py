"""The usage event: what one attempt used, measured once, at its end."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from forebay.worker.domain.attempt_id import AttemptId


class Outcome(enum.Enum):
    """How an attempt ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    HANDED_OVER = "handed_over"
    BUDGET_STOPPED = "budget_stopped"
    LOST = "lost"  # so far: what stands in the ledger if nothing later is known, since the worker died


class Ending(enum.Enum):
    """Why an attempt ended, more closely than its outcome."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    BUDGET = "budget"
    ERROR = "error"
    HANDED_OVER = "handed_over"

    @property
    def outcome(self) -> Outcome:
        """What the ledger says of it."""
        return _OUTCOMES[self]


_OUTCOMES = {
    Ending.STOP: Outcome.COMPLETED,
    Ending.LENGTH: Outcome.COMPLETED,
    Ending.CANCELLED: Outcome.CANCELLED,
    Ending.BUDGET: Outcome.BUDGET_STOPPED,
    Ending.ERROR: Outcome.FAILED,
    Ending.HANDED_OVER: Outcome.HANDED_OVER,
}


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who and what an attempt is for, as the router says it; the worker copies it and decides nothing by it.

    Attributes:
        queue_time: seconds from admission to the grant's arrival at the router.
    """

    tenant_id: str
    key_id: str
    plan: str
    priced_by_plan: bool
    service_class: str
    model: str
    queue_time: float
    client_request_id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt ran: the pool, the worker, and which of its lives."""

    worker_id: str
    incarnation: int
    pool: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The W3C trace context that the event is recorded under; empty strings when the request is not traced."""

    traceparent: str = ""
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """32 hex digits, or empty."""
        return self.traceparent[3:35]


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What one attempt used. Its identity is its id: recorded twice, it counts once.

    Attributes:
        prompt_tokens: of the request; billed by the first of its attempts that reached an engine.
        cached_tokens: those of prompt_tokens that came from the prefix cache.
        completion_from, completion_to: the completion positions that this attempt bills, the last excluded.
        recomputed_tokens: computed again for a continuation; never billed.
        gpu_time_ns: recomputation included; recomputed_gpu_time_ns is that part of it.
        time_to_first_token: seconds from admission; None when the request's first token is not of this attempt.
        started_at, finished_at: seconds since the epoch.
    """

    id: AttemptId
    attribution: Attribution
    place: Place
    adapter: str
    prompt_tokens: int
    cached_tokens: int
    completion_from: int
    completion_to: int
    recomputed_tokens: int
    gpu_time_ns: int
    recomputed_gpu_time_ns: int
    time_to_first_token: float | None
    started_at: float
    finished_at: float
    outcome: Outcome
    trace: Trace
