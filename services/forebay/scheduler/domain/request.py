"""What a router submits, and its place while it waits."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forebay.scheduler.domain.flow import Flow, Place

if TYPE_CHECKING:
    from forebay.scheduler.domain.pool import Pool


class ServiceClass(enum.Enum):
    """A class of service: a weight, not a strict priority. The numbers are the contract's."""

    GOLD = 1
    SILVER = 2
    BRONZE = 3


class Measure(enum.Enum):
    """What is done to a request because its pool is under pressure. The numbers are the contract's."""

    PACED = 1
    SHORTENED = 2


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One execution of one request; attempts count from 1."""

    request_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.request_id}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Spell:
    """One stay of a worker: from the registration of a session to its end.

    Attributes:
        worker_id, incarnation: the life of the worker.
        session: counts the sessions of that life, from 1.
    """

    worker_id: str
    incarnation: int
    session: int


@dataclass(frozen=True, slots=True)
class Trace:
    """The values of the W3C trace headers; empty when the request is not traced."""

    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt as the scheduler sees it: sizes, never content.

    Attributes:
        key_id: the tenant's key that it came with; empty for none.
        weight_milli: the tenant's weight in thousandths.
        pool: empty for the model's shared pool.
        adapter: empty for the bare model.
        prompt_tokens: with those that earlier attempts generated.
        max_tokens: the most still to generate.
        least_max_tokens: what max_tokens may be shortened to under pressure; 0 for not at all.
        pinned: it cannot be continued elsewhere, so it is never evicted.
        delivered_tokens: those of prompt_tokens that earlier attempts generated.
        prefix_hashes: of the prompt's leading blocks of `prefix_block_tokens`, keyed per tenant.
        waited_s: how long it has waited before.
        remaining_s: until the client's deadline; None for none.
        queue_timeout_s: the longest further wait; None for up to `remaining_s`.
        start_after_s: it starts no earlier than this from now; its tenant is being slowed down.
        excluded_workers: where an earlier attempt broke; other workers are preferred for a while.
    """

    key: AttemptKey
    tenant_id: str
    service_class: ServiceClass
    weight_milli: int
    model: str
    prompt_tokens: int
    max_tokens: int
    key_id: str = ""
    pool: str = ""
    adapter: str = ""
    least_max_tokens: int = 0
    pinned: bool = False
    delivered_tokens: int = 0
    prefix_hashes: tuple[int, ...] = ()
    prefix_block_tokens: int = 0
    waited_s: float = 0.0
    remaining_s: float | None = None
    queue_timeout_s: float | None = None
    start_after_s: float = 0.0
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
        place: orders it within its flow: the time by which it is to start, and its number in order of arrival.
        enqueued_at: when it began to wait, earlier submissions included.
        ends_at: when it is refused if it still waits.
        start_at, held_back: it starts no earlier, and until then does not count as waiting.
        deadline: the client's; None for none.
        excluded: spells of workers that do not run it until `excluded_until`.
        excluded_until: when the exclusion ends. An excluded worker that serves then is better than a wait without end.
        measures: what was done to it because the pool is under pressure.
        blocked_since: when it was first found not to fit although its flow was owed most.
    """

    request: Request
    router: str
    pool: "Pool"
    flow: "Flow[Queued]"
    place: Place
    enqueued_at: float
    ends_at: float
    start_at: float
    deadline: float | None
    excluded: frozenset[Spell]
    excluded_until: float
    held_back: bool = True
    measures: tuple[Measure, ...] = ()
    blocked_since: float | None = None

    @property
    def due_at(self) -> float:
        """When time changes something for it next: it may start, its exclusions end, or its wait does."""
        if self.held_back:
            return min(self.start_at, self.ends_at)
        return min(self.excluded_until, self.ends_at) if self.excluded else self.ends_at
