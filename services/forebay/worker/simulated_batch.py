"""Continuous batching as vLLM V1 does it, in small; the core of the simulated engine, without clock or loop.

Sequences join and leave between steps. A step has a budget of tokens: running sequences come first, prompts are computed in
chunks with what is left. KV is counted in blocks with a prefix cache; when they run out, the sequence of the least rank is
put back and computed again. An adapter is loaded when its first sequence is admitted; one that finds no slot is passed by. A
sequence whose lead has reached the window keeps its place and sits steps out.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from forebay.worker import simulated_model
from forebay.worker.domain.adapter_slots import AdapterSlots
from forebay.worker.domain.block_cache import BlockCache, prefix_keys
from forebay.worker.domain.step_cost import StepCost
from forebay.worker.domain.stop_strings import StopStrings
from forebay.worker.engine import Capacity, EngineRequest, FinishReason, Output


@dataclass(slots=True, eq=False)
class Stream:
    """One attempt in the batch.

    Attributes:
        rank: (priority, order of arrival); the greatest is the first to be put back.
        state: hash of the prefix.
        last: the last token of the prefix.
        position: completion tokens in all, delivered ones included.
        limit: the position at which it ends.
        stops: None when only the end token and the limit can end it, and nothing is held.
        keys: of the full blocks of prompt and delivered tokens.
        generated, delivered: tokens of this attempt; their difference is its lead.
        uncomputed: tokens still to be prefilled.
        shared, private: the blocks that it uses.
        cached_tokens: None until it is first admitted.
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
        """Tokens of its prefix now."""
        return len(self.request.prompt_token_ids) + self.position


@dataclass(slots=True)
class Part:
    """What one step does for one stream: prefills tokens, generates up to `tokens`, or both."""

    stream: Stream
    prefill: int
    tokens: int


Plan = dict[str, Part]  # by attempt id


class SimulatedBatch:
    """All attempts of an engine; `plan` begins a step, `complete` ends it, and between them attempts may leave.

    Attributes:
        preemptions: how often a stream was put back.
        adapter_loads: how often an adapter was loaded.
    """

    def __init__(self, capacity: Capacity, window_tokens: int) -> None:
        if capacity.kv_tokens < capacity.max_model_len + capacity.block_tokens:
            raise ValueError("the KV cache must hold a request of the greatest length, and a block")
        self.preemptions = 0
        self.adapter_loads = 0
        self._capacity = capacity
        self._window_tokens = window_tokens
        self._chain = simulated_model.word_chain()
        self._blocks = BlockCache(capacity.kv_tokens // capacity.block_tokens)
        self._adapters = AdapterSlots(capacity.max_adapters)
        self._arrivals = 0
        self._streams: dict[str, Stream] = {}
        self._waiting: list[Stream] = []  # by rank
        self._running: dict[str, Stream] = {}
        self._runnable: dict[str, Stream] = {}  # the running ones whose lead leaves room

    @property
    def running(self) -> int:
        """Streams that are being computed."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Streams that wait for room."""
        return len(self._waiting)

    @property
    def kv_tokens_used(self) -> int:
        """Tokens of KV cache in use, in whole blocks."""
        return self._blocks.used * self._capacity.block_tokens

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that are loaded."""
        return self._adapters.loaded

    def add(self, request: EngineRequest) -> None:
        """Queues an attempt that can run."""
        sampling = request.sampling
        prefix = [*request.prompt_token_ids, *request.delivered_token_ids]
        has_stops = sampling.stop or sampling.stop_token_ids or request.held_text
        self._arrivals += 1
        stream = Stream(
            request=request,
            rank=(request.priority, self._arrivals),
            state=self._chain.start(sampling.seed, prefix),
            last=prefix[-1],
            position=len(request.delivered_token_ids),
            limit=min(sampling.max_tokens, self._capacity.max_model_len - len(request.prompt_token_ids)),
            stops=StopStrings(sampling.stop, request.held_text) if has_stops else None,
            stop_tokens=frozenset(sampling.stop_token_ids),
            keys=prefix_keys(f"{request.cache_salt}/{request.adapter}", prefix, self._capacity.block_tokens),
        )
        self._streams[request.attempt_id] = stream
        bisect.insort(self._waiting, stream, key=_rank)

    def remove(self, attempt_id: str) -> None:
        """Forgets an attempt, or does nothing when it is unknown."""
        stream = self._streams.pop(attempt_id, None)
        if stream is None:
            return
        if attempt_id in self._running:
            self._give_up_room(stream)
        else:
            del self._waiting[bisect.bisect_left(self._waiting, stream.rank, key=_rank)]

    def delivered(self, attempt_id: str, tokens: int) -> bool:
        """Notes the delivery of `tokens` of this attempt; returns whether it lets the stream run again."""
        stream = self._streams.get(attempt_id)
        if stream is None:
            return False
        stream.delivered = min(max(tokens, stream.delivered), stream.generated)
        if attempt_id not in self._running or attempt_id in self._runnable or not self._room(stream):
            return False
        self._runnable[attempt_id] = stream
        return True

    def fail(self, error: str) -> list[Output]:
        """Ends every attempt with an error."""
        return [self._output(stream, [], "", FinishReason.ERROR, error) for stream in list(self._streams.values())]

    # The beginning of a step: who takes part.

    def plan(self, tokens: int) -> Plan:
        """Returns the next step's parts, of up to `tokens` tokens for each stream; takes the KV blocks for them."""
        plan: Plan = {}
        budget = self._capacity.max_num_batched_tokens
        preemptions = self.preemptions
        for stream in list(self._runnable.values()):
            if not budget:
                return plan
            if stream.request.attempt_id in self._running:  # else it was put back for the sake of one before it
                budget -= self._plan_part(plan, stream, budget, tokens)
        if self.preemptions > preemptions:
            return plan  # who was put back must not come in again for the room that was made
        while budget and (admitted := self._admit(tokens)) is not None:
            if admitted.request.attempt_id in self._runnable:
                budget -= self._plan_part(plan, admitted, budget, tokens)
        return plan

    def _plan_part(self, plan: Plan, stream: Stream, budget: int, tokens: int) -> int:
        """Plans a part for one stream; returns the tokens of budget that it takes."""
        prefill = min(stream.uncomputed, budget)
        if prefill < stream.uncomputed:
            plan[stream.request.attempt_id] = Part(stream, prefill, 0)
            return prefill
        tokens = min(tokens, stream.limit - stream.position, self._room(stream))
        if not self._grow(plan, stream, tokens):
            return 0
        plan[stream.request.attempt_id] = Part(stream, prefill, tokens)
        return prefill or 1

    def _room(self, stream: Stream) -> int:
        """Returns how many tokens the stream may generate before more of them are delivered."""
        if not self._window_tokens:
            return stream.limit
        return self._window_tokens - stream.generated + stream.delivered

    def _admit(self, tokens: int) -> Stream | None:
        """Moves the first waiting stream to the running ones, if there is room for its prefix and `tokens` more.

        It is the first of those whose adapter is loaded, or can be.
        """
        if len(self._running) >= self._capacity.max_num_seqs:
            return None
        slots, block = self._adapters, self._capacity.block_tokens
        stream = next((each for each in self._waiting if slots.has_room_for(each.request.adapter)), None)
        if stream is None:
            return None
        # The last token is always computed: what it yields is the first output.
        hits = self._blocks.match(stream.keys[: (stream.context_tokens - 1) // block])
        private = self._blocks_for(stream, tokens) - hits
        if not self._blocks.take(stream.keys[:hits], private):
            return None
        self._waiting.remove(stream)
        self.adapter_loads += slots.take(stream.request.adapter)
        stream.shared, stream.private = stream.keys[:hits], private
        stream.uncomputed = stream.context_tokens - hits * block
        if stream.cached_tokens is None:
            stream.cached_tokens = hits * block
        self._running[stream.request.attempt_id] = stream
        if self._room(stream):
            self._runnable[stream.request.attempt_id] = stream
        return stream

    def _grow(self, plan: Plan, stream: Stream, tokens: int) -> bool:
        """Takes the blocks for `tokens` more; puts back others of lower rank for them, or the stream itself."""
        missing = self._blocks_for(stream, tokens) - len(stream.shared) - stream.private
        if missing <= 0:
            return True
        while not self._blocks.take((), missing):
            victim = max(self._running.values(), key=_rank)
            self.preemptions += 1
            plan.pop(victim.request.attempt_id, None)
            self._give_up_room(victim)
            bisect.insort(self._waiting, victim, key=_rank)
            if victim is stream:
                return False
        stream.private += missing
        return True

    def _blocks_for(self, stream: Stream, tokens: int) -> int:
        """Returns the number of blocks that its prefix and up to `tokens` more fill."""
        end = len(stream.request.prompt_token_ids) + min(stream.position + tokens, stream.limit)
        return -(-end // self._capacity.block_tokens)

    def _give_up_room(self, stream: Stream) -> None:
        attempt_id = stream.request.attempt_id
        del self._running[attempt_id]
        self._runnable.pop(attempt_id, None)
        self._blocks.release(stream.shared, stream.private)
        self._adapters.release(stream.request.adapter)
        stream.shared, stream.private = [], 0

    # The end of a step: what it yields.

    def complete(self, plan: Plan) -> list[Output]:
        """Returns what the step yields for the attempts that have not left since it was planned."""
        outputs = []
        for attempt_id, part in plan.items():
            stream = part.stream
            if self._streams.get(attempt_id) is not stream:
                continue
            if part.prefill:
                stream.uncomputed -= part.prefill
                if stream.uncomputed:
                    continue
                fresh = self._blocks.share(stream.keys)
                stream.shared += fresh
                stream.private -= len(fresh)
            outputs.append(self._generate(stream, part.tokens))
        return outputs

    def _generate(self, stream: Stream, count: int) -> Output:
        sampling = stream.request.sampling
        may_end = not sampling.ignore_eos
        if stream.position < sampling.min_tokens:
            count = min(count, sampling.min_tokens - stream.position)
            may_end = False
        stream.state, token_ids = self._chain.draw(stream.state, stream.last, count, may_end=may_end)
        stream.last = token_ids[-1]
        ended = stream.last == simulated_model.END
        if stream.stops is None:
            text = "".join([simulated_model.TEXT[token] for token in token_ids])
        else:
            token_ids, text, stopped = self._scan(stream, stream.stops, token_ids)
            ended = ended or stopped
        stream.position += len(token_ids)
        stream.generated += len(token_ids)
        if ended:
            return self._output(stream, token_ids, text, FinishReason.STOP)
        if stream.position >= stream.limit:
            return self._output(stream, token_ids, text, FinishReason.LENGTH)
        return self._output(stream, token_ids, text, None)

    def _scan(self, stream: Stream, stops: StopStrings, token_ids: list[int]) -> tuple[list[int], str, bool]:
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
        self, stream: Stream, token_ids: list[int], text: str, finish: FinishReason | None, error: str = ""
    ) -> Output:
        """Returns an output; with a `finish` it has all text that was held, and the stream is forgotten."""
        held = ""
        if finish is not None:
            self.remove(stream.request.attempt_id)
            text += stream.stops.flush() if stream.stops is not None else ""
        else:
            if self._room(stream) <= 0:
                del self._runnable[stream.request.attempt_id]
            held = stream.stops.held if stream.stops is not None else ""
        return Output(
            attempt_id=stream.request.attempt_id,
            token_ids=token_ids,
            text=text,
            held_text=held,
            completion_tokens=stream.position,
            cached_tokens=stream.cached_tokens or 0,
            finish=finish,
            error=error,
        )


def plan_seconds(parts: Sequence[Part], cost: StepCost) -> float:
    """Returns the time of a step."""
    decoding = [part.stream for part in parts if not part.prefill]
    context = sum(stream.context_tokens for stream in decoding)
    return cost.seconds(len(decoding), context, sum(part.prefill for part in parts))


def _rank(stream: Stream) -> tuple[int, int]:
    return stream.rank
