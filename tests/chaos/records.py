"""What was seen of a run, as plain values: by its clients, of its processes, in its books."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """What an undisturbed engine says to a prompt."""

    tokens: tuple[int, ...]
    text: str


class End(enum.Enum):
    """How a client's call ended."""

    FINISHED = "finished"  # by `finished`, as the last message
    LEFT = "left"  # the client cancelled it, as planned
    FAILED = "failed"  # by an error, or without `finished`


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
    """

    name: str
    pid: int
    born: float
    ready: float | None = None
    died: float | None = None
    killed: bool = True

    def serves(self, since: float, until: float) -> bool:
        """Returns whether it was healthy from `since` on, and lived to `until`."""
        return self.ready is not None and self.ready <= since and (self.died is None or until < self.died)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger, as the tenant sees it.

    Attributes:
        corrects: the position that it corrects; 0 for an attempt's first row.
        source: WORKER, WORKER_RECOVERY or ROUTER.
        prompt_tokens, completion_tokens: what it bills; negative where it takes back.
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


@dataclass(frozen=True, slots=True)
class Books:
    """What the mesh has written down when all is over.

    Attributes:
        rows: of all tenants; a row that was sent twice is here twice.
        open_reservations: ids of those that are not settled.
        slots: concurrent requests that count against the tenants' limits.
    """

    rows: tuple[Row, ...] = ()
    open_reservations: tuple[str, ...] = ()
    slots: int = 0
