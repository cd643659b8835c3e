"""A model of vLLM's V1 scheduler, exact to the step; what a step takes comes from a cost model.

What is modelled, in the order in which vLLM does it in each step:
1. Running sequences first, in the order in which they were admitted: one token each when they decode, the next chunk of
   their prompt when they do not, out of a common budget of tokens.
2. KV comes in blocks. Where none is free for a running sequence, the last one by (priority, arrival) is preempted: its blocks are
   freed, it waits again, and all that it had computed, output included, is computed again as prefill.
3. Waiting sequences, by (priority, arrival), unless this step preempted any. The first whose whole sequence does not fit into
   free blocks ends the step's admission: nobody overtakes it. Blocks are taken for the chunk alone, so several long prompts
   that are admitted at once can still run into each other.

One ordered queue stands for both of vLLM's policies. Under first come, first served, what runs always arrived before
what waits, so "to the head of the queue" is the same place as "by arrival", and the last admitted is the last to arrive.

Left out, because the figures that it was fitted to have none of it: prefix caching, speculative decoding, adapters, overlap of
scheduling with the step before.
"""

import heapq
import itertools
from dataclasses import astuple, dataclass, field

from forebay.errors import Code, MeshError
from forebay.worker.domain.step_cost import A10G, StepCost


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What an engine can hold and how fast it is.

    Attributes:
        kv_tokens: KV cache, in tokens; whole blocks of it are used.
        block_tokens: tokens in one block.
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens computed in one step.
        max_model_len: tokens of one sequence, prompt and completion together.
        cost: what a step takes.
    """

    kv_tokens: int = 10_000
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2_048
    max_model_len: int = 2_048
    cost: StepCost = A10G

    @property
    def blocks(self) -> int:
        """The whole blocks of the cache."""
        return self.kv_tokens // self.block_tokens


def faster(cost: StepCost, times: float) -> StepCost:
    """Returns the cost of an engine that is so many times as fast."""
    return StepCost(*(seconds / times for seconds in astuple(cost)))


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine.

    Attributes:
        priority: lower goes first.
        prompt, output: tokens of the prompt, and how many it will yield.
        arrival: its number in order of arrival at the engine.
        tokens: those known by now: the prompt and what was generated.
        computed: those of them whose KV is in the cache.
        blocks: held.
        step: tokens that the step under way computes for it.
    """

    id: int
    prompt: int
    output: int
    priority: int = 0
    arrival: int = 0
    tokens: int = 0
    computed: int = 0
    blocks: int = 0
    step: int = 0

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return self.tokens - self.prompt


def _rank(sequence: Sequence) -> tuple[int, int]:
    return (sequence.priority, sequence.arrival)


@dataclass(slots=True)
class Step:
    """What one step did.

    Attributes:
        produced: sequences that got their next token, the finished ones among them.
        finished: sequences that have all their tokens and left.
        preempted: how many were.
    """

    produced: list[Sequence] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    preempted: int = 0


class Engine:
    """One engine. `begin` a step, let its time pass, `complete` it; add and abort in between.

    Attributes:
        running: admitted sequences, in order of admission.
        free_blocks: nobody's blocks.
        preemptions, recomputed_tokens: since the start; a token counts as recomputed when a preemption throws it away.
    """

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self.running: list[Sequence] = []
        self.free_blocks = shape.blocks
        self.preemptions = 0
        self.recomputed_tokens = 0
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._arrivals = itertools.count(1)
        self._preempted_in_step = 0

    @property
    def waiting(self) -> int:
        """How many sequences wait, the preempted ones among them."""
        return len(self._waiting)

    @property
    def kv_tokens_used(self) -> int:
        """Tokens of all blocks that are held."""
        return (self.shape.blocks - self.free_blocks) * self.shape.block_tokens

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence.

        Raises:
            MeshError: INVALID_ARGUMENT TOO_LARGE, it could never run to its end.
        """
        total = sequence.prompt + sequence.output
        if total > self.shape.max_model_len or -(-total // self.shape.block_tokens) > self.shape.blocks:
            raise MeshError(Code.INVALID_ARGUMENT, "TOO_LARGE", f"{total} tokens are more than the engine holds")
        sequence.tokens = sequence.prompt
        sequence.arrival = next(self._arrivals)
        self._enqueue(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drops a sequence that has not finished; call it between steps."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)

    def begin(self) -> float | None:
        """Schedules a step and returns how long it takes, in seconds; None when there is nothing to compute."""
        self._preempted_in_step = 0
        budget = self._schedule_running(self.shape.max_num_batched_tokens)
        if not self._preempted_in_step or not self.running:
            self._admit(budget)
        sequences = context = prefill = 0
        for sequence in self.running:
            if sequence.step == 1 and sequence.tokens > sequence.prompt:
                sequences += 1
                context += sequence.tokens
            else:
                prefill += sequence.step
        if not sequences and not prefill:
            return None
        return self.shape.cost.seconds(sequences, context, prefill)

    def complete(self) -> Step:
        """Ends the step under way: sequences whose tokens are all computed get their next one."""
        step = Step(preempted=self._preempted_in_step)
        produced = step.produced
        for sequence in self.running:
            sequence.computed += sequence.step
            if sequence.step and sequence.computed == sequence.tokens:
                sequence.tokens += 1
                produced.append(sequence)
            sequence.step = 0
        step.finished = [sequence for sequence in produced if sequence.tokens == sequence.prompt + sequence.output]
        for sequence in step.finished:
            self.running.remove(sequence)
            self._free(sequence)
        return step

    def _schedule_running(self, budget: int) -> int:
        running, block = self.running, self.shape.block_tokens
        index = 0
        while index < len(running) and budget > 0:
            sequence = running[index]
            new = min(sequence.tokens - sequence.computed, budget)
            end = sequence.computed + new
            if end > sequence.blocks * block:
                while not self._take(sequence, end):
                    victim = max(running, key=_rank)
                    position = running.index(victim)
                    del running[position]
                    if position < index:
                        index -= 1
                        budget += victim.step
                    self._preempt(victim)
                    if victim is sequence:
                        return budget
            sequence.step = new
            budget -= new
            index += 1
        return budget

    def _admit(self, budget: int) -> None:
        shape = self.shape
        while self._waiting and budget > 0 and len(self.running) < shape.max_num_seqs:
            sequence = self._waiting[0][1]
            if -(-sequence.tokens // shape.block_tokens) > self.free_blocks:
                return
            heapq.heappop(self._waiting)
            sequence.step = min(sequence.tokens, budget)
            self._take(sequence, sequence.step)
            budget -= sequence.step
            self.running.append(sequence)

    def _take(self, sequence: Sequence, tokens: int) -> bool:
        needed = -(-tokens // self.shape.block_tokens) - sequence.blocks
        if needed > self.free_blocks:
            return False
        self.free_blocks -= needed
        sequence.blocks += needed
        return True

    def _free(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = sequence.computed = sequence.step = 0

    def _preempt(self, sequence: Sequence) -> None:
        self._preempted_in_step += 1
        self.preemptions += 1
        self.recomputed_tokens += sequence.computed
        self._free(sequence)
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (_rank(sequence), sequence))
