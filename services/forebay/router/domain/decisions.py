"""What is to be done about a request, as its life decides."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from forebay.errors import MeshError
from forebay.router.domain.events import FinishReason, Grant, Usage


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be charged for a request.

    Attributes:
        started: whether an engine may have had it; otherwise nothing is charged.
        gpu_time_s: of all attempts that said.
    """

    started: bool
    usage: Usage
    gpu_time_s: float


class Outcome(enum.Enum):
    """How an attempt ended; the numbers are the metering contract's."""

    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    HANDED_OVER = 4
    LOST = 5
    BUDGET_STOPPED = 6


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
class Report:
    """Tell metering what an attempt used, as far as it was seen from here (P5). Once for each that an engine may have had.

    Attributes:
        grant: of the attempt.
        continued: whether an earlier attempt may have reached an engine, so that this one first computed again what was there.
        completion_from, completion_to: the positions that are this attempt's; the next one begins where it ends.
        cached_tokens, gpu_time_s: as the worker said; 0 when it did not.
        confirmed: whether the worker said how it ended, so that its own event is most likely on the way.
    """

    grant: Grant
    outcome: Outcome
    continued: bool
    completion_from: int
    completion_to: int
    cached_tokens: int = 0
    gpu_time_s: float = 0.0
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The request is over.

    Attributes:
        reason: why, when there was an answer.
        error: what the client is told instead of a regular end.
    """

    reason: FinishReason
    error: MeshError | None = None


Decision = Submit | Start | Decline | Withdraw | Cancel | Report | End
