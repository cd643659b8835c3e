"""An engine without a model: the port's in-memory twin, and the instrument for tests, benchmarks and capacity planning.

Its tokens are a function of seed and prefix, so whoever continues a stream elsewhere gets the same tokens and text. It
batches as vLLM V1 does, in small: sequences join and leave between steps, prompts are computed in chunks within a budget of
tokens, KV is counted in blocks with a prefix cache, and when blocks run out the sequence of least priority is put back and
computed again. Temperature, top-p and penalties do not change what it says.

A step takes the time of a cost model, divided by `speed`. A cost of zero makes steps as fast as Python goes: then each tick
gathers several steps, and the loop runs between ticks. With `manual` nothing happens but in `step()`.
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from forebay.errors import Code, MeshError
from forebay.worker import simulated_model
from forebay.worker.domain.block_cache import BlockCache, prefix_keys
from forebay.worker.domain.step_cost import A10G, FREE, StepCost
from forebay.worker.domain.stop_strings import StopStrings
from forebay.worker.engine import (
    Capacity,
    EngineRequest,
    EngineState,
    FinishReason,
    Output,
    Sink,
    Step,
    check_request,
)

DEFAULT_CAPACITY = Capacity(
    kv_tokens=131_072,
    block_tokens=32,
    max_num_seqs=256,
    max_num_batched_tokens=2_048,
    max_model_len=8_192,
    max_adapters=0,
)
_GATHERED_STEPS = 8  # in one tick, when steps take no time


@dataclass(slots=True, eq=False)
class _Stream:
    """One attempt in the engine.

    Attributes:
        rank: (priority, order of arrival); the greatest is the first to be put back.
        state: hash of the prefix.
        last: the last token of the prefix.
        position: completion tokens in all, delivered ones included.
        limit: the position at which it ends.
        stops: None when no token can be the last but the end token and the one at the limit.
        keys: of the full blocks of prompt and delivered tokens.
        generated, delivered: tokens of this attempt; their difference is its lead.
        uncomputed: tokens still to be prefilled.
        shared, private: the blocks that it uses.
        cached_tokens: set when it is first admitted.
    """

    request: EngineRequest
    rank: tuple[int, int]
    state: int
    last: int
    position: int
    limit: int
    stops: StopStrings | None
    stop_tokens: frozenset[int]
    keys: list[int]
    generated: int = 0
    delivered: int = 0
    uncomputed: int = 0
    shared: list[int] = field(default_factory=list)
    private: int = 0
    cached_tokens: int | None = None

    @property
    def context_tokens(self) -> int:
        return len(self.request.prompt_token_ids) + self.position


@dataclass(slots=True)
class _Part:
    """What one step does for one stream: prefills tokens, generates up to `tokens`, or both."""

    stream: _Stream
    prefill: int
    tokens: int


_Plan = dict[str, _Part]


class SimulatedEngine:
    """An `Engine`; see the module's text."""

    kind = "simulated"

    def __init__(
        self,
        capacity: Capacity = DEFAULT_CAPACITY,
        cost: StepCost = A10G,
        *,
        speed: float = 1.0,
        window_tokens: int = 0,
        manual: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity.kv_tokens < capacity.max_model_len + capacity.block_tokens:
            raise ValueError("the KV cache must hold a request of the greatest length, and a block")
        self.capacity = capacity
        self.window_tokens = window_tokens
        self._cost = cost
        self._speed = speed
        self._manual = manual
        self._monotonic = monotonic
        self._chain = simulated_model.word_chain()
        self._blocks = BlockCache(capacity.kv_tokens // capacity.block_tokens)
        self._streams: dict[str, _Stream] = {}
        self._waiting: list[tuple[tuple[int, int], _Stream]] = []  # a heap; streams that have ended are skipped
        self._running: dict[str, _Stream] = {}
        self._runnable: dict[str, _Stream] = {}  # the running ones whose lead leaves room
        self._arrivals = 0
        self._preemptions = 0
        self._steps = 0
        self._ended_at = 0.0
        self._sink: Sink | None = None
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._healthy = False

    async def start(self, sink: Sink) -> None:
        """Begins to serve."""
        self._sink = sink
        self._healthy = True
        if not self._manual:
            self._loop = asyncio.create_task(self._run(), name="simulated-engine")

    def add(self, request: EngineRequest) -> None:
        """Queues an attempt."""
        if not self._healthy:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_DEAD", "the engine does not serve")
        check_request(request, self.capacity, simulated_model.VOCABULARY_TOKENS)
        sampling = request.sampling
        prefix = [*request.prompt_token_ids, *request.delivered_token_ids]
        has_stops = sampling.stop or sampling.stop_token_ids or request.held_text
        self._arrivals += 1
        stream = _Stream(
            request=request,
            rank=(request.priority, self._arrivals),
            state=self._chain.start(sampling.seed, prefix),
            last=prefix[-1],
            position=len(request.delivered_token_ids),
            limit=min(sampling.max_tokens, self.capacity.max_model_len - len(request.prompt_token_ids)),
            stops=StopStrings(sampling.stop, request.held_text) if has_stops else None,
            stop_tokens=frozenset(sampling.stop_token_ids),
            keys=prefix_keys(request.cache_salt, prefix, self.capacity.block_tokens),
        )
        self._streams[request.attempt_id] = stream
        self._queue(stream)

    def abort(self, attempt_id: str) -> None:
        """Ends an attempt; the step that is being computed is the last."""
        stream = self._streams.get(attempt_id)
        if stream is not None:
            self._remove(stream)

    def delivered(self, attempt_id: str, tokens: int) -> None:
        """Lets the stream run further."""
        stream = self._streams.get(attempt_id)
        if stream is None:
            return
        stream.delivered = min(max(tokens, stream.delivered), stream.generated)
        if attempt_id in self._running and attempt_id not in self._runnable and self._room(stream):
            self._runnable[attempt_id] = stream
            self._wake.set()

    def state(self) -> EngineState:
        """Returns the load now."""
        return EngineState(
            running=len(self._running),
            waiting=len(self._streams) - len(self._running),
            kv_tokens_used=self._blocks.used * self.capacity.block_tokens,
            preemptions=self._preemptions,
            healthy=self._healthy,
        )

    def fail(self, error: str) -> None:
        """Dies as a real engine does: it is unhealthy for good, and every attempt ends with an ERROR output."""
        self._healthy = False
        now = self._monotonic()
        outputs = [
            self._output(stream, [], "", FinishReason.ERROR, error=error) for stream in list(self._streams.values())
        ]
        self._emit(Step(self._steps, now, now, [], outputs))

    async def close(self) -> None:
        """Gives up all attempts."""
        self._healthy = False
        for stream in list(self._streams.values()):
            self._remove(stream)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    def step(self) -> Step | None:
        """Computes one step now (`manual` only) and returns it; None when nothing can run."""
        plan = self._plan(tokens=1)
        if not plan:
            return None
        started_at = max(self._monotonic(), self._ended_at)
        return self._complete(plan, started_at, started_at + self._seconds(plan))

    async def _run(self) -> None:
        tokens = _GATHERED_STEPS if self._cost == FREE else 1
        while True:
            plan = self._plan(tokens)
            if not plan:
                self._wake.clear()
                await self._wake.wait()
                self._ended_at = self._monotonic()
                continue
            seconds = self._seconds(plan)
            # A late wake-up is made up for in the next step, and only there.
            started_at = max(self._ended_at, self._monotonic() - seconds)
            await asyncio.sleep(started_at + seconds - self._monotonic())
            self._complete(plan, started_at, started_at + seconds)

    # Planning: who takes part in the next step.

    def _plan(self, tokens: int) -> _Plan:
        """Returns the next step's parts, of up to `tokens` tokens for each stream; takes the KV blocks for them."""
        plan: _Plan = {}
        budget = self.capacity.max_num_batched_tokens
        for stream in list(self._runnable.values()):
            if not budget:
                return plan
            if stream.request.attempt_id in self._running:  # else it was put back for the sake of one before it
                budget -= self._plan_part(plan, stream, budget, tokens)
        while budget and len(self._running) < self.capacity.max_num_seqs and self._admit():
            budget -= self._plan_part(plan, next(reversed(self._running.values())), budget, tokens)
        return plan

    def _plan_part(self, plan: _Plan, stream: _Stream, budget: int, tokens: int) -> int:
        """Plans a part for one stream; returns the tokens of budget that it takes."""
        prefill = min(stream.uncomputed, budget)
        if prefill < stream.uncomputed:
            plan[stream.request.attempt_id] = _Part(stream, prefill, 0)
            return prefill
        tokens = min(tokens, stream.limit - stream.position, self._room(stream))
        if not self._grow(plan, stream, tokens):
            return 0
        plan[stream.request.attempt_id] = _Part(stream, prefill, tokens)
        return prefill or 1

    def _room(self, stream: _Stream) -> int:
        """Returns how many tokens the stream may generate before more of them are delivered."""
        if not self.window_tokens:
            return stream.limit
        return self.window_tokens - stream.generated + stream.delivered

    def _admit(self) -> bool:
        """Moves the first waiting stream to the running ones, if there is one and its prefix has room."""
        while self._waiting:
            stream = self._waiting[0][1]
            attempt_id = stream.request.attempt_id
            if self._streams.get(attempt_id) is not stream:
                heapq.heappop(self._waiting)
                continue
            block = self.capacity.block_tokens
            # The last token is always computed: what it yields is the first output.
            hits = self._blocks.match(stream.keys[: (stream.context_tokens - 1) // block])
            private = _blocks(stream.context_tokens, block) - hits
            if not self._blocks.take(stream.keys[:hits], private):
                return False
            heapq.heappop(self._waiting)
            stream.shared, stream.private = stream.keys[:hits], private
            stream.uncomputed = stream.context_tokens - hits * block
            if stream.cached_tokens is None:
                stream.cached_tokens = hits * block
            self._running[attempt_id] = self._runnable[attempt_id] = stream
            return True
        return False

    def _grow(self, plan: _Plan, stream: _Stream, tokens: int) -> bool:
        """Takes the blocks for `tokens` more; puts back others of lower rank for them, or the stream itself."""
        blocks = _blocks(stream.context_tokens + tokens, self.capacity.block_tokens)
        missing = blocks - len(stream.shared) - stream.private
        if missing <= 0:
            return True
        while not self._blocks.take((), missing):
            victim = max(self._running.values(), key=lambda running: running.rank)
            self._preemptions += 1
            plan.pop(victim.request.attempt_id, None)
            self._give_up_room(victim)
            self._queue(victim)
            if victim is stream:
                return False
        stream.private += missing
        return True

    def _queue(self, stream: _Stream) -> None:
        heapq.heappush(self._waiting, (stream.rank, stream))
        self._wake.set()

    def _seconds(self, plan: _Plan) -> float:
        decoding = [part.stream for part in plan.values() if not part.prefill]
        context = sum(stream.context_tokens for stream in decoding)
        prefill = sum(part.prefill for part in plan.values())
        return self._cost.seconds(len(decoding), context, prefill) / self._speed

    # Completion: what the step yields.

    def _complete(self, plan: _Plan, started_at: float, ended_at: float) -> Step:
        outputs = []
        for attempt_id, part in plan.items():
            stream = part.stream
            if self._streams.get(attempt_id) is not stream:
                continue  # aborted while the step was computed
            if part.prefill:
                stream.uncomputed -= part.prefill
                if stream.uncomputed:
                    continue
                fresh = self._blocks.share(stream.keys)
                stream.shared += fresh
                stream.private -= len(fresh)
            outputs.append(self._generate(stream, part.tokens))
        self._ended_at = ended_at
        step = Step(self._steps, started_at, ended_at, list(plan), outputs)
        self._steps += 1
        self._emit(step)
        return step

    def _generate(self, stream: _Stream, count: int) -> Output:
        sampling = stream.request.sampling
        may_end = not sampling.ignore_eos
        if stream.position < sampling.min_tokens:
            count = min(count, sampling.min_tokens - stream.position)
            may_end = False
        stream.state, token_ids = self._chain.draw(stream.state, stream.last, count, may_end=may_end)
        stream.last = token_ids[-1]
        ended = stream.last == simulated_model.END
        finish = FinishReason.STOP if ended else None
        if stream.stops is None:
            text = "".join([simulated_model.TEXT[token] for token in token_ids])
        else:
            token_ids, text, stopped = self._scan(stream, stream.stops, token_ids)
            if stopped:
                finish = FinishReason.STOP
        stream.position += len(token_ids)
        stream.generated += len(token_ids)
        if finish is None and stream.position >= stream.limit:
            finish = FinishReason.LENGTH
        if finish is not None and stream.stops is not None:
            text += stream.stops.flush()
        return self._output(stream, token_ids, text, finish)

    def _scan(self, stream: _Stream, stops: StopStrings, token_ids: list[int]) -> tuple[list[int], str, bool]:
        """Looks for the stream's stop tokens and strings; returns the tokens up to one, the text, whether there is one."""
        min_tokens = stream.request.sampling.min_tokens
        text = ""
        for count, token in enumerate(token_ids, start=1):
            armed = stream.position + count > min_tokens
            if armed and token in stream.stop_tokens:
                return token_ids[:count], text, True
            piece, stopped = stops.push(simulated_model.TEXT[token], armed=armed)
            text += piece
            if stopped:
                return token_ids[:count], text, True
        return token_ids, text, False

    def _output(
        self, stream: _Stream, token_ids: list[int], text: str, finish: FinishReason | None, error: str = ""
    ) -> Output:
        """Returns an output; the last of a stream lets go of it."""
        if finish is not None:
            self._remove(stream)
        elif self._room(stream) <= 0:
            del self._runnable[stream.request.attempt_id]
        return Output(
            attempt_id=stream.request.attempt_id,
            token_ids=token_ids,
            text=text,
            held_text=stream.stops.held if stream.stops is not None else "",
            completion_tokens=stream.position,
            cached_tokens=stream.cached_tokens or 0,
            finish=finish,
            error=error,
        )

    def _emit(self, step: Step) -> None:
        if self._sink is not None:
            self._sink(step)

    def _remove(self, stream: _Stream) -> None:
        del self._streams[stream.request.attempt_id]
        if stream.request.attempt_id in self._running:
            self._give_up_room(stream)
            self._wake.set()  # somebody who waits may fit now

    def _give_up_room(self, stream: _Stream) -> None:
        attempt_id = stream.request.attempt_id
        del self._running[attempt_id]
        self._runnable.pop(attempt_id, None)
        self._blocks.release(stream.shared, stream.private)
        stream.shared, stream.private = [], 0


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
