"""What happens to a request, as its life is told of it, in whatever order."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from forebay.errors import MeshError

EVICTED = "EVICTED"
"""The reason of a handover that the scheduler asked for, to make room for somebody else."""


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
        max_tokens: the most that the attempt may generate; fewer than asked for when too much waits and the client allows it.
        body: the grant as received, which the worker is shown and the router does not look into.
    """

    attempt: int
    worker_id: str
    worker_incarnation: int
    worker_address: str
    waited_s: float
    max_tokens: int
    body: bytes


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
    """The worker wants it continued: elsewhere, or, when it was evicted, wherever there is room."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The session to its worker ended.

    Attributes:
        sent: whether the payload had left, so that the engine may have had it; False where it certainly had not.
    """

    attempt: int
    sent: bool = True


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
