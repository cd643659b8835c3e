"""What a worker can hold, what it has been promised, and what of it is free."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.request import AttemptKey, Queued, Request
from forebay.scheduler.domain.virtual_counters import Flow

if TYPE_CHECKING:
    from forebay.scheduler.domain.pool import Pool

PREFILL_STEPS = 2
"""How many steps' worth of prompt tokens may wait for their prefill on one worker."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine holds at most: KV tokens, tokens per block, requests and tokens in one step, tokens of one request."""

    kv_tokens: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_adapters: int = 0

    @property
    def usable_kv_tokens(self) -> int:
        """The KV tokens of whole blocks."""
        return self.kv_tokens // self.block_tokens * self.block_tokens

    def kv_for(self, request: Request) -> int:
        """Returns the KV tokens to set aside for a request: the most it can come to, in whole blocks."""
        return -(-request.total_tokens // self.block_tokens) * self.block_tokens

    def can_ever_hold(self, request: Request) -> bool:
        """Whether a request fits when nothing else runs."""
        return request.total_tokens <= self.max_model_len and self.kv_for(request) <= self.usable_kv_tokens


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when it registers. `address` is where routers reach it, host:port."""

    id: str
    incarnation: int
    address: str
    model: str
    capacity: Capacity
    pool: str = ""


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine's load as its worker reported it; the fields are the contract's."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    preemptions: int = 0
    healthy: bool = True
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """What a worker holds from before its session: an attempt, or (not `started`) the batch entry of one."""

    key: AttemptKey
    tenant_id: str
    kv_tokens: int
    generated_tokens: int
    started: bool


@dataclass(slots=True, eq=False)
class InFlight:
    """A promise to one attempt on one worker.

    Attributes:
        kv_tokens: promised.
        unprefilled: prompt tokens that are still to be computed, as far as is known.
        grant: None when a scheduler before this one gave it.
        flow: whom its service is charged to; None while no router has said.
        charged_input: prompt tokens charged on dispatch.
        generated: tokens reported and charged.
        started: whether its worker has said anything of it.
    """

    key: AttemptKey
    worker: "Worker"
    kv_tokens: int
    unprefilled: int
    max_tokens: int
    grant: Grant | None = None
    flow: Flow[Queued] | None = None
    charged_input: int = 0
    generated: int = 0
    started: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, present or away.

    Attributes:
        attached: whether it has a session.
        reported: what it said it holds, until it has said all of it; None from then on.
        engine: its load; taken for healthy until it says otherwise.
        draining: whether it takes no more.
        kept_for: the waiting request that its freed room is kept for (rule P8).
        promised, unprefilled: sums over `in_flight`.
    """

    info: WorkerInfo
    pool: "Pool"
    attached: bool = True
    reported: dict[AttemptKey, RunningAttempt] | None = field(default_factory=dict)
    engine: EngineState = EngineState()
    draining: bool = False
    kept_for: Queued | None = None
    in_flight: dict[AttemptKey, InFlight] = field(default_factory=dict)
    promised: int = 0
    unprefilled: int = 0

    @property
    def free_kv_tokens(self) -> int:
        """KV tokens promised to nobody; below 0 when the worker reported more than it can hold."""
        return self.info.capacity.usable_kv_tokens - self.promised

    @property
    def healthy(self) -> bool:
        """Whether its engine can serve."""
        return self.engine.healthy

    @property
    def present(self) -> bool:
        """Whether it may be given work at all: what it holds is known, and it takes more."""
        return self.attached and self.reported is None and self.healthy and not self.draining

    @property
    def full(self) -> bool:
        """Whether not even the smallest request fits."""
        capacity = self.info.capacity
        return len(self.in_flight) >= capacity.max_num_seqs or self.free_kv_tokens < capacity.block_tokens

    def may_run(self, queued: Queued) -> bool:
        """Whether it could take a request if it were empty."""
        return (
            self.present
            and (self.info.id, self.info.incarnation) not in queued.excluded
            and (not queued.request.adapter or self.info.capacity.max_adapters > 0)
            and self.info.capacity.can_ever_hold(queued.request)
        )

    def has_room_for(self, queued: Queued) -> bool:
        """Whether it can take a request now."""
        capacity = self.info.capacity
        return (
            self.kept_for in (None, queued)
            and len(self.in_flight) < capacity.max_num_seqs
            and capacity.kv_for(queued.request) <= self.free_kv_tokens
            and self._has_prefill_room(queued.request.prompt_tokens)
        )

    def _has_prefill_room(self, tokens: int) -> bool:
        # A prompt longer than the bound goes alone, or it would never go.
        bound = PREFILL_STEPS * self.info.capacity.max_num_batched_tokens
        return self.unprefilled == 0 or self.unprefilled + tokens <= bound

    def returned(self, info: WorkerInfo) -> None:
        """Begins another session of the same life; what it holds is to be reported again."""
        self.info, self.attached, self.reported = info, True, {}
        self.engine, self.draining = EngineState(), False

    def take(self, entry: InFlight) -> None:
        """Adds a promise."""
        self.in_flight[entry.key] = entry
        self.promised += entry.kv_tokens
        self.unprefilled += entry.unprefilled

    def release(self, entry: InFlight) -> None:
        """Ends a promise."""
        del self.in_flight[entry.key]
        self.promised -= entry.kv_tokens
        self.unprefilled -= entry.unprefilled

    def prefilled(self, entry: InFlight) -> bool:
        """Notes that an attempt's prompt is computed; False when that was known."""
        known = entry.unprefilled == 0
        self.unprefilled -= entry.unprefilled
        entry.unprefilled = 0
        return not known
