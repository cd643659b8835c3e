"""What a router submits, and its place while it waits."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forebay.scheduler.domain.virtual_counters import Flow, Place

if TYPE_CHECKING:
    from forebay.scheduler.domain.pool import Pool
    from forebay.scheduler.domain.worker import Worker


class ServiceClass(enum.Enum):
    """A class of service: a weight, not a strict priority. The numbers are the contract's."""

    GOLD = 1
    SILVER = 2
    BRONZE = 3


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One execution of one request; attempts count from 1."""

    request_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.request_id}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The values of the W3C trace headers; empty when the request is not traced."""

    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt as the scheduler sees it: sizes, never content.

    Attributes:
        weight_milli: the tenant's weight in thousandths.
        pool: empty for the model's shared pool.
        adapter: empty for the bare model.
        prompt_tokens: with those that earlier attempts generated.
        max_tokens: the most still to generate.
        delivered_tokens: those of prompt_tokens that earlier attempts generated.
        waited_s: how long it has waited before.
        remaining_s: until the client's deadline; None for none.
        queue_timeout_s: the longest further wait; None for up to `remaining_s`.
        excluded_workers: where an earlier attempt broke.
    """

    key: AttemptKey
    tenant_id: str
    service_class: ServiceClass
    weight_milli: int
    model: str
    prompt_tokens: int
    max_tokens: int
    pool: str = ""
    adapter: str = ""
    delivered_tokens: int = 0
    waited_s: float = 0.0
    remaining_s: float | None = None
    queue_timeout_s: float | None = None
    excluded_workers: frozenset[str] = frozenset()
    trace: Trace = Trace()

    @property
    def total_tokens(self) -> int:
        """The most KV tokens it will ever hold."""
        return self.prompt_tokens + self.max_tokens


@dataclass(slots=True, eq=False)
class Queued:
    """A request that waits.

    Attributes:
        router: the session that is to hear of it.
        place: orders it within its flow.
        deadline: the client's; None for none.
        excluded: (worker id, incarnation) pairs that must not run it. A worker that has restarted since is another one.
        skips, skipped_since: how often and since when others were served although this was the neediest flow's head.
        keeps: the worker whose freed room is kept for it (rule P8).
    """

    request: Request
    router: str
    pool: "Pool"
    flow: "Flow[Queued]"
    place: Place
    deadline: float | None
    excluded: frozenset[tuple[str, int]]
    skips: int = 0
    skipped_since: float | None = None
    keeps: "Worker | None" = None

    @property
    def enqueued_at(self) -> float:
        """When it began to wait, earlier submissions included."""
        return self.place[0]
