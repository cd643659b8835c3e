"""The model of vLLM's scheduler, rule by rule; blocks of 4 tokens, so that sums are easy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import MeshError
from forebay.simulator.engine import Engine, EngineShape, Sequence
from forebay.worker.domain.step_cost import StepCost

COST = StepCost(fixed=1.0, per_sequence=0.1, per_context_token=0.01, per_prefill_token=0.001)


def shape(blocks: int = 10, *, seqs: int = 8, batched: int = 16) -> EngineShape:
    return EngineShape(
        kv_tokens=4 * blocks,
        block_tokens=4,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_model_len=40,
        cost=COST,
    )


def engine(*sequences: Sequence, **values: int) -> Engine:
    made = Engine(shape(**values))
    for sequence in sequences:
        made.add(sequence)
    return made


def step(engine: Engine) -> tuple[list[int], list[int]]:
    """Runs one step; returns who got a token and who finished."""
    assert engine.begin() is not None
    done = engine.complete()
    return [sequence.id for sequence in done.produced], [sequence.id for sequence in done.finished]


def test_a_prompt_takes_one_step_and_every_further_token_one() -> None:
    one = engine(Sequence(1, prompt=5, output=3))
    assert [step(one) for _ in range(3)] == [([1], []), ([1], []), ([1], [1])]
    assert one.begin() is None
    assert one.free_blocks == 10


def test_a_step_costs_by_what_it_computes() -> None:
    two = engine(Sequence(1, prompt=4, output=9))
    assert two.begin() == pytest.approx(1.0 + 0.001 * 4)
    two.complete()
    two.add(Sequence(2, prompt=6, output=9))
    # The first decodes over its prompt and the token it got, the second prefills.
    assert two.begin() == pytest.approx(1.0 + 0.1 + 0.01 * 5 + 0.001 * 6)


def test_a_long_prompt_goes_in_chunks_after_those_who_decode() -> None:
    one = engine(Sequence(1, prompt=4, output=9), batched=6)
    step(one)
    one.add(Sequence(2, prompt=12, output=2))
    assert step(one) == ([1], [])  # 1 of the budget decodes, 5 of the prompt are computed
    assert step(one) == ([1], [])  # 5 more
    assert step(one) == ([1, 2], [])


def test_who_does_not_fit_whole_stops_admission_even_for_smaller_ones() -> None:
    one = engine(Sequence(1, prompt=20, output=4), batched=40)
    step(one)
    one.add(Sequence(2, prompt=22, output=2))
    one.add(Sequence(3, prompt=2, output=2))
    assert step(one) == ([1], [])
    assert one.waiting == 2


def test_lower_priority_numbers_are_admitted_first() -> None:
    one = engine(Sequence(1, prompt=4, output=2, priority=5), Sequence(2, prompt=4, output=2, priority=1), seqs=1)
    assert step(one) == ([2], [])


def test_the_last_to_arrive_is_preempted_and_computed_again_in_full() -> None:
    one = engine(Sequence(1, prompt=8, output=12), Sequence(2, prompt=7, output=6), blocks=5)
    assert step(one) == ([1, 2], [])  # two blocks each
    assert step(one) == ([1, 2], [])  # the first takes the fifth; the second's token still fits its own
    assert one.begin() is not None  # now the second needs one, and is the last itself
    assert (one.preemptions, one.recomputed_tokens) == (1, 8)
    assert [sequence.id for sequence in one.complete().produced] == [1]
    for _ in range(8):
        assert step(one) == ([1], [])  # the second's 9 tokens fit again only when the first has left
    assert step(one) == ([1], [1])
    # Its prompt and its two tokens are one prefill, which yields the third.
    assert one.begin() == pytest.approx(1.0 + 0.001 * 9)
    (produced,) = one.complete().produced
    assert (produced.id, produced.generated) == (2, 3)


def test_a_step_that_preempts_admits_nobody() -> None:
    one = engine(Sequence(1, prompt=8, output=12), Sequence(2, prompt=12, output=8), blocks=5, batched=20)
    step(one)
    one.add(Sequence(3, prompt=1, output=1))
    assert step(one) == ([1], [])  # the second's three blocks are free again, and the third still waits
    assert one.waiting == 2


def test_the_least_urgent_is_preempted_wherever_it_stands() -> None:
    one = engine(Sequence(1, prompt=8, output=9, priority=9), blocks=5)
    step(one)
    one.add(Sequence(2, prompt=8, output=9, priority=1))
    assert step(one) == ([1, 2], [])
    # The second needs a third block; the first, although it came and was scheduled before, gives up its own.
    assert step(one) == ([2], [])
    assert one.preemptions == 1


def test_an_aborted_sequence_leaves_its_blocks_running_or_waiting() -> None:
    running, waiting = Sequence(1, prompt=20, output=4), Sequence(2, prompt=30, output=4)
    one = engine(running, waiting, batched=40)
    step(one)
    one.abort(waiting)
    one.abort(running)
    assert (one.begin(), one.waiting, one.free_blocks) == (None, 0, 10)


def test_what_could_never_end_is_refused() -> None:
    with pytest.raises(MeshError, match="more than the engine holds"):
        engine(Sequence(1, prompt=30, output=11))
    with pytest.raises(MeshError, match="more than the engine holds"):
        engine(Sequence(1, prompt=10, output=11), blocks=5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(10, 25),
    st.integers(1, 20),
)
def test_everybody_gets_every_token_once_and_no_block_is_lost(
    lengths: list[tuple[int, int, int]], blocks: int, batched: int
) -> None:
    one = engine(
        *(Sequence(n, p, o, priority) for n, (p, o, priority) in enumerate(lengths)), blocks=blocks, batched=batched
    )
    got = [0] * len(lengths)
    while one.begin() is not None:
        assert sum(sequence.step for sequence in one.running) <= batched
        assert one.free_blocks + sum(sequence.blocks for sequence in one.running) == blocks
        assert all(4 * sequence.blocks >= sequence.computed + sequence.step for sequence in one.running)
        for sequence in one.complete().produced:
            got[sequence.id] += 1
    assert got == [output for _, output, _ in lengths]
    assert (one.free_blocks, one.waiting, one.running) == (blocks, 0, [])
