"""What was seen of a run, as plain values: by its clients, of its strikes, of its processes, in its books."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .plan import PATIENT_S, Disruption

# From when to when, in monotonic seconds.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an undisturbed engine says to a prompt."""

    tokens: tuple[int, ...]
    text: str


class End(enum.Enum):
    """How a client's call ended."""

    FINISHED = "finished"  # by `finished`, as the last message
    LEFT = "left"  # the client cancelled it, as planned
    LATE = "late"  # by DEADLINE_EXCEEDED
    FAILED = "failed"  # by another error, or without `finished`


@dataclass(slots=True)
class Try:
    """One call: a client whose router dies, or which is refused, tries again with a new one. Times are monotonic seconds.

    Attributes:
        ask: the number of the request in the plan.
        label: unique; the call's client_request_id.
        request_id: empty until the router has told it.
        deltas: (position, number of tokens) as they came.
        usage: (prompt, completion) tokens as the last message told them.
        typed: whether the error had the mesh's own details, which only a living router sends.
        error: code, reason and message, for people.
    """

    ask: int
    label: str
    tenant: str
    prompt_tokens: int
    router: str
    began: float
    deadline_s: float = PATIENT_S
    ended: float = 0.0
    request_id: str = ""
    deltas: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    usage: tuple[int, int] | None = None
    end: End = End.FAILED
    typed: bool = False
    error: str = "did not end in the time of the run"


@dataclass(slots=True)
class Life:
    """One process from its start to its end.

    Attributes:
        ready: when it was found healthy; None until then.
        died: None while it lives.
        killed: whether kill -9 ended it, as far as the launcher tells.
        pauses: from when to when it was stopped by SIGSTOP; infinity for a pause that lasts.
    """

    name: str
    pid: int
    born: float
    ready: float | None = None
    died: float | None = None
    killed: bool = True
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def lives(self, since: float, until: float) -> bool:
        """Returns whether it was healthy from `since` on, and lived to `until`, be it paused meanwhile."""
        return self.ready is not None and self.ready <= since and (self.died is None or until < self.died)

    def paused(self, since: float, until: float) -> float:
        """Returns for how long it was paused between two times."""
        return sum(max(0.0, min(end, until) - max(start, since)) for start, end in self.pauses)

    @property
    def serves(self) -> list[Span]:
        """The spans in which it was healthy and ran."""
        if self.ready is None:
            return []
        spans, since = [], self.ready
        for start, end in sorted(self.pauses):
            spans.append((since, start))
            since = max(since, end)
        return [
            (start, end)
            for start, end in (*spans, (since, math.inf if self.died is None else self.died))
            if start < end
        ]


@dataclass(frozen=True, slots=True)
class Struck:
    """A disruption that was carried out; it was over at `ended`."""

    disruption: Disruption
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class PoolSample:
    """What the leading scheduler said of its pool at one moment.

    Attributes:
        queued: requests that waited.
        idle: workers that took requests and had none.
    """

    at: float
    queued: int
    idle: frozenset[str]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger, as the tenant sees it.

    Attributes:
        corrects: the position that it corrects; 0 for an attempt's first row.
        source: WORKER, WORKER_RECOVERY or ROUTER.
        prompt_tokens, completion_tokens, cost_nano_usd: what it bills; negative where it takes back.
    """

    position: int
    corrects: int
    tenant: str
    request_id: str
    label: str
    attempt: int
    source: str
    completion_from: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Books:
    """What the mesh has written down when all is over.

    Attributes:
        rows: of all tenants; a row that was sent twice is here twice.
        open_reservations: ids of those that are not settled.
        slots: concurrent requests that count against the tenants' limits.
        budgets: by tenant, what its counters have of the present day and month, by limit.
    """

    rows: tuple[Row, ...] = ()
    open_reservations: tuple[str, ...] = ()
    slots: int = 0
    budgets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
