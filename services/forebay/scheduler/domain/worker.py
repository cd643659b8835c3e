"""What a worker can hold, what it has been promised, and what of it is free."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.flow import Flow
from forebay.scheduler.domain.peak import Peak, Row
from forebay.scheduler.domain.prefixes import Prefixes
from forebay.scheduler.domain.request import AttemptKey, Queued, Request, Spell
from forebay.scheduler.domain.room import RoomRules, Strain

if TYPE_CHECKING:
    from forebay.scheduler.domain.pool import Pool

ADAPTER_LOAD_TOKENS = 512
"""What loading an adapter is taken to cost, in computed prompt tokens, when workers are compared."""


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
        tokens = request.total_tokens
        return tokens <= self.max_model_len and -(-tokens // self.block_tokens) <= self.kv_tokens // self.block_tokens


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
        pool: whose flows it is charged in; not the worker's own when the worker is lent.
        prompt_tokens: with those that earlier attempts generated, which are `delivered_tokens`.
        expected_tokens: of KV cache that it was expected to come to when it was granted.
        unprefilled: prompt tokens that are still to be computed, as far as is known.
        grant: None when a scheduler before this one gave it.
        flow: whom its service is charged to; None while no router has said.
        charged_input: prompt tokens charged on dispatch.
        generated: tokens reported and charged.
        started: whether its worker has said anything of it.
        evicted: whether its worker was told to hand it over.
        pinned: whether it must never be.
        future: what it holds and is expected to generate yet, for `Peak`.
        adapter: that it runs with; empty for none, or while no router has said.
    """

    key: AttemptKey
    worker: "Worker"
    pool: "Pool"
    kv_tokens: int
    prompt_tokens: int
    unprefilled: int
    max_tokens: int
    delivered_tokens: int = 0
    expected_tokens: int = 0
    grant: Grant | None = None
    flow: Flow[Queued] | None = None
    charged_input: int = 0
    generated: int = 0
    started: bool = False
    evicted: bool = False
    pinned: bool = False
    future: Row = (0, 0)
    adapter: str = ""

    def foresee(self) -> None:
        """Looks again at what it holds, the unused half of its last block included, and at what it will generate yet.

        Until its router has said what it is, it is taken for as large as it may become.
        """
        remaining, held, delivered = 0, self.kv_tokens, self.delivered_tokens
        if self.flow is not None:
            remaining = self.pool.lengths.remaining(delivered + self.generated, delivered + self.max_tokens)
            held = self.prompt_tokens + self.generated + self.worker.info.capacity.block_tokens // 2
        self.worker.expected += remaining + held - (self.future[1] - self.future[0])
        self.future = -remaining, held


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, present or away.

    Attributes:
        attached: whether it has a session.
        session: counts the sessions of this life, from 1.
        reported: what it said it holds, until it has said all of it; None from then on.
        engine, heard: its load, and whether it has ever told it; taken for healthy until it says otherwise.
        draining: whether it takes no more.
        promised, unprefilled, expected: sums over `in_flight`: of the most that each may come to, of prompt tokens to be
            computed, and of what each is expected to come to now.
        lent: what guests were expected to come to.
        adapters: how many attempts run with each that is in use.
        preempted: preemptions that its engine reported and that `alpha` has not answered yet.
    """

    info: WorkerInfo
    pool: "Pool"
    rules: RoomRules
    attached: bool = True
    session: int = 1
    reported: dict[AttemptKey, RunningAttempt] | None = field(default_factory=dict)
    engine: EngineState = EngineState()
    heard: bool = False
    draining: bool = False
    in_flight: dict[AttemptKey, InFlight] = field(default_factory=dict)
    promised: int = 0
    unprefilled: int = 0
    expected: int = 0
    lent: int = 0
    adapters: dict[str, int] = field(default_factory=dict)
    preempted: int = 0
    strain: Strain = field(init=False)
    prefixes: Prefixes = field(init=False)
    _peak: Peak | None = None

    def __post_init__(self) -> None:
        self.strain = Strain(self.rules)
        self.prefixes = Prefixes(self.info.capacity.kv_tokens // self.info.capacity.block_tokens)

    @property
    def spell(self) -> Spell:
        """Its present stay; another one when it has come back."""
        return Spell(self.info.id, self.info.incarnation, self.session)

    @property
    def healthy(self) -> bool:
        """Whether its engine can serve."""
        return self.engine.healthy

    @property
    def present(self) -> bool:
        """Whether it may be given work at all: what it holds is known, and it takes more."""
        return self.attached and self.reported is None and self.healthy and not self.draining

    @property
    def peak(self) -> Peak:
        """The future peak of what it was promised."""
        if self._peak is None:
            self._peak = Peak(entry.future for entry in self.in_flight.values() if not entry.evicted)
        return self._peak

    def lowered_by(self, now: float) -> float:
        """Returns what preemptions have taken from alpha."""
        if self.preempted:
            self.strain.preempted(self.preempted, now)
            self.preempted = 0
        return self.strain.lowered_by(now)

    def bound(self, now: float, *, favoured: bool) -> float:
        """Returns the KV tokens that the future peak may come to."""
        alpha = self.rules.favoured_alpha if favoured else self.rules.alpha
        return (alpha - self.lowered_by(now)) * self.info.capacity.usable_kv_tokens

    def may_run(self, queued: Queued) -> bool:
        """Whether it could take a request if it were present and empty."""
        return (
            self.info.capacity.can_ever_hold(queued.request)
            and not (queued.excluded and self.spell in queued.excluded)
            and (not queued.request.adapter or self.info.capacity.max_adapters > 0)
            and self.lends(queued)
        )

    def lends(self, queued: Queued, already: int = 0) -> bool:
        """Whether a request is its own pool's, or a guest that it has room for beside guests of so many KV tokens."""
        if queued.pool is self.pool:
            return True
        return already + self.expected_tokens(queued) <= self.rules.lent_share * self.info.capacity.kv_tokens

    def has_room_for(self, queued: Queued, now: float) -> bool:
        """Whether it can take a request now."""
        if len(self.in_flight) >= self.info.capacity.max_num_seqs:
            return False
        if not self.in_flight:
            return True
        if not (self.lends(queued, self.lent) and self.has_slot(queued.request.adapter)):
            return False
        if not self.has_prefill_room(queued.request.prompt_tokens):
            return False
        future = self.future(queued)
        need = future[1] - future[0]
        # The peak is at most the sum of what each will come to, and that is known without looking at each.
        if self.expected + need <= self.bound(now, favoured=False):
            return True
        peak = self.peak.with_one(future)
        if peak <= self.bound(now, favoured=False):
            return True
        return peak <= self.bound(now, favoured=True) and queued.pool.holds_little(queued, need)

    def future(self, queued: Queued) -> Row:
        """Returns what a waiting request would hold at first and is expected to generate, for `Peak`."""
        request = queued.request
        delivered = request.delivered_tokens
        remaining = queued.pool.lengths.remaining(delivered, delivered + request.max_tokens)
        return -remaining, request.prompt_tokens + self.info.capacity.block_tokens // 2

    def expected_tokens(self, queued: Queued) -> int:
        """Returns the KV tokens that a waiting request is expected to come to."""
        shortened, held = self.future(queued)
        return held - shortened

    def saves(self, request: Request) -> int:
        """Returns the tokens of computing that a request is spared here, for what the worker has cached and loaded."""
        saved = request.prefix_block_tokens * self.prefixes.hit_blocks(request.prefix_hashes)
        return saved + (ADAPTER_LOAD_TOKENS if request.adapter and request.adapter in self.engine.adapters else 0)

    def has_slot(self, adapter: str) -> bool:
        """Whether an adapter is in use here or can be loaded at once; otherwise its request would wait in the engine."""
        return not adapter or adapter in self.adapters or len(self.adapters) < self.info.capacity.max_adapters

    def uses(self, adapter: str, attempts: int) -> None:
        """Notes that so many more attempts run with an adapter; nothing for the bare model."""
        if not adapter:
            return
        users = self.adapters.get(adapter, 0) + attempts
        if users:
            self.adapters[adapter] = users
        else:
            del self.adapters[adapter]

    def has_prefill_room(self, tokens: int) -> bool:
        # A prompt longer than the bound goes alone, or it would never go.
        bound = self.rules.prefill_steps * self.info.capacity.max_num_batched_tokens
        return self.unprefilled == 0 or self.unprefilled + tokens <= bound

    def returned(self, info: WorkerInfo) -> None:
        """Begins another session of the same life; what it holds is to be reported again."""
        self.info, self.attached, self.reported = info, True, {}
        self.session += 1
        for entry in self.in_flight.values():
            entry.evicted = False  # the word of it may have been lost with the session
        self.moved()
        self.engine, self.draining = EngineState(preemptions=self.engine.preemptions), False

    def reports(self, state: EngineState) -> None:
        """Notes its load."""
        if self.heard:  # else they may be of long ago
            self.preempted += max(0, state.preemptions - self.engine.preemptions)
        self.engine, self.heard = state, True

    def take(self, entry: InFlight) -> None:
        """Adds a promise."""
        entry.foresee()
        if self._peak is not None:
            self._peak.add(entry.future)
        self.in_flight[entry.key] = entry
        self.promised += entry.kv_tokens
        self.unprefilled += entry.unprefilled
        self.uses(entry.adapter, 1)
        if entry.pool is not self.pool:
            self.lent += entry.expected_tokens

    def release(self, entry: InFlight) -> None:
        """Ends a promise."""
        del self.in_flight[entry.key]
        self.promised -= entry.kv_tokens
        self.unprefilled -= entry.unprefilled
        self.expected -= entry.future[1] - entry.future[0]
        self.uses(entry.adapter, -1)
        if entry.pool is not self.pool:
            self.lent -= entry.expected_tokens
        self._peak = None

    def moved(self) -> None:
        """Notes that an engine step has changed what its requests hold."""
        self._peak = None

    def prefilled(self, entry: InFlight) -> bool:
        """Notes that an attempt's prompt is computed; False when that was known."""
        known = entry.unprefilled == 0
        self.unprefilled -= entry.unprefilled
        entry.unprefilled = 0
        return not known
