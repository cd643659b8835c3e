"""The usage event: what one execution attempt used, as its worker or router reports it."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from forebay.errors import Code, FieldViolation, MeshError

NANO = 1_000_000_000

# Beyond these a report is a fault of the reporter, and its price would not be one that anybody meant.
MAX_ATTEMPT = 1_000
MAX_TOKENS = 100_000_000
MAX_SPAN_NS = 1_000_000 * NANO
MAX_TIME_NS = 9_223_372_036 * NANO  # the last second that ns in 64 bits can count, in 2262
MAX_TEXT_BYTES = 256
MAX_LABELS = 16
MAX_LABEL_BYTES = 128

_HEX_32 = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9-]{1,63}")


class Outcome(enum.Enum):
    """How an attempt ended; the values are the names that sums show."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    HANDED_OVER = "handed_over"
    LOST = "lost"
    BUDGET_STOPPED = "budget_stopped"


class Source(enum.IntEnum):
    """Who reports; the smaller number knows better (rule P5)."""

    WORKER = 1
    WORKER_RECOVERY = 2
    ROUTER = 3


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """The identity of an event, unique across all time."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What one attempt used; the fields are those of the contract, times in ns since the epoch, spans in ns.

    Attributes:
        prompt_tokens: of the request; billed by the first of its attempts that has an event.
        cached_tokens: those of prompt_tokens that came from the prefix cache.
        completion_from, completion_to: the completion positions that this attempt bills, the last excluded.
        recomputed_tokens: computed again for a continuation; never billed.
        gpu_time_ns: recomputation included; recomputed_gpu_time_ns is that part of it and never billed.
        time_to_first_token_ns: None when there was no first token.
        started_at_ns: None when the reporter did not see the start.
        labels: the client's own dimensions.
    """

    request_id: str
    attempt: int
    source: Source
    tenant_id: str
    key_id: str
    plan: str
    priced_by_plan: bool
    service_class: str
    model: str
    adapter: str
    pool: str
    worker_id: str
    worker_incarnation: int
    prompt_tokens: int
    cached_tokens: int
    completion_from: int
    completion_to: int
    recomputed_tokens: int
    gpu_time_ns: int
    recomputed_gpu_time_ns: int
    queue_time_ns: int
    time_to_first_token_ns: int | None
    started_at_ns: int | None
    finished_at_ns: int
    outcome: Outcome
    trace_id: str
    client_request_id: str
    labels: Mapping[str, str]

    @property
    def key(self) -> AttemptKey:
        """The event's identity."""
        return AttemptKey(self.request_id, self.attempt)


def check(event: UsageEvent) -> None:
    """Refuses what can never be recorded.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_EVENT, with every field that is wrong.
    """
    texts = ("key_id", "plan", "service_class", "adapter", "pool", "client_request_id")
    tokens = ("prompt_tokens", "cached_tokens", "completion_from", "completion_to", "recomputed_tokens")
    spans = ("gpu_time_ns", "recomputed_gpu_time_ns", "queue_time_ns", "time_to_first_token_ns")
    rules = [
        ("request_id", _HEX_32.fullmatch(event.request_id), "32 lower-case hex digits"),
        ("attempt", 1 <= event.attempt <= MAX_ATTEMPT, f"1 to {MAX_ATTEMPT}"),
        ("tenant_id", _NAME.fullmatch(event.tenant_id), "1 to 63 of [a-z0-9-]"),
        ("model", 1 <= _bytes(event.model) <= MAX_TEXT_BYTES, f"1 to {MAX_TEXT_BYTES} bytes"),
        *((name, _bytes(getattr(event, name)) <= MAX_TEXT_BYTES, f"at most {MAX_TEXT_BYTES} bytes") for name in texts),
        (
            "worker.id",
            _NAME.fullmatch(event.worker_id) or (event.source is Source.ROUTER and not event.worker_id),
            "1 to 63 of [a-z0-9-]; may be empty when a router reports",
        ),
        *((name, 0 <= getattr(event, name) <= MAX_TOKENS, f"0 to {MAX_TOKENS} tokens") for name in tokens),
        ("cached_tokens", event.cached_tokens <= event.prompt_tokens, "at most prompt_tokens"),
        ("completion_to", event.completion_from <= event.completion_to, "at least completion_from"),
        *(
            (
                name.removesuffix("_ns"),
                0 <= (getattr(event, name) or 0) <= MAX_SPAN_NS,
                f"0 to {MAX_SPAN_NS // NANO} seconds",
            )
            for name in spans
        ),
        ("recomputed_gpu_time", event.recomputed_gpu_time_ns <= event.gpu_time_ns, "at most gpu_time"),
        ("started_at", 0 <= (event.started_at_ns or 0) <= MAX_TIME_NS, "a time from 1970 to 2262, or unset"),
        ("finished_at", 0 < event.finished_at_ns <= MAX_TIME_NS, "a time from 1970 to 2262"),
        ("trace_id", not event.trace_id or _HEX_32.fullmatch(event.trace_id), "32 lower-case hex digits, or empty"),
        ("labels", len(event.labels) <= MAX_LABELS, f"at most {MAX_LABELS}"),
        (
            "labels",
            all(_bytes(text) <= MAX_LABEL_BYTES for label in event.labels.items() for text in label),
            f"keys and values of at most {MAX_LABEL_BYTES} bytes",
        ),
    ]
    violations = [FieldViolation(field, right) for field, holds, right in rules if not holds]
    if violations:
        raise bad_event(violations)


def bad_event(violations: list[FieldViolation]) -> MeshError:
    """Returns the error that turns an event away for good."""
    fields = ", ".join(sorted({violation.field for violation in violations}))
    return MeshError(
        Code.INVALID_ARGUMENT, "BAD_EVENT", f"the event can never be recorded: {fields}", field_violations=violations
    )


def better(known: UsageEvent, report: UsageEvent) -> UsageEvent:
    """Returns what to believe of one attempt, given what was believed and one more report of it.

    The better source wins and, among equals, the earlier report. Only a worker's checkpoint can be behind what a client was
    given: its completion_to rises to the largest that anyone saw (rule P5). So the order of reports does not matter.
    """
    best = report if report.source < known.source else known
    if best.source is Source.WORKER_RECOVERY:
        return replace(best, completion_to=max(known.completion_to, report.completion_to))
    return best


def _bytes(text: str) -> int:
    return len(text.encode())
