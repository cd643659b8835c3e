"""The engine port's behaviour on the simulated engine, stepped by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import Code, MeshError
from forebay.testing.clock import FakeClock
from forebay.worker import simulated_model
from forebay.worker.domain.step_cost import A10G, FREE, StepCost
from forebay.worker.engine import FinishReason, Step
from forebay.worker.simulated_engine import SimulatedEngine

from .builders import SMALL, answer, hand_engine, play, request, transcripts

WORDS = [text for text in simulated_model.TEXT if text.startswith(" ")]


def word(text: str) -> int:
    """The token of a word that the model speaks."""
    return simulated_model.TEXT.index(text)


# What it says.


async def test_the_same_seed_and_prompt_say_the_same() -> None:
    first = await answer(request(max_tokens=100, ignore_eos=True))
    assert (await answer(request("b/1", salt="other", priority=3, max_tokens=100, ignore_eos=True))).text == first.text
    assert (await answer(request(seed=8, max_tokens=100, ignore_eos=True))).text != first.text
    assert (await answer(request(prompt=range(301, 311), max_tokens=100, ignore_eos=True))).text != first.text


async def test_the_text_is_what_the_tokenizer_makes_of_the_tokens() -> None:
    spoken = await answer(request(max_tokens=400, seed=2))
    assert spoken.text == simulated_model.tokenizer().decode(spoken.token_ids)
    assert spoken.finish is FinishReason.STOP
    assert spoken.token_ids[-1] == simulated_model.END
    assert spoken.text.endswith(".")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    prompt=st.lists(st.integers(0, simulated_model.VOCABULARY_TOKENS - 1), min_size=1, max_size=20),
    min_tokens=st.integers(0, 12),
    stop=st.lists(st.sampled_from([*WORDS, ".", ". The", " the old", "il", "e mil", "\n"]), max_size=3),
)
async def test_a_stream_continues_at_every_position_as_if_nothing_had_happened(
    seed: int, prompt: list[int], min_tokens: int, stop: list[str]
) -> None:
    sampling = {"seed": seed, "max_tokens": 24, "min_tokens": min_tokens, "stop": tuple(stop)}
    whole = await answer(request(prompt=prompt, **sampling))
    sent_tokens: list[int] = []
    sent_text = ""
    for output in whole.outputs[:-1]:
        sent_tokens += output.token_ids
        sent_text += output.text
        rest = await answer(request("a/2", prompt, sent_tokens, output.held_text, **sampling))
        assert sent_tokens + rest.token_ids == whole.token_ids
        assert sent_text + rest.text == whole.text
        assert rest.outputs[0].completion_tokens == len(sent_tokens) + 1
        assert rest.finish == whole.finish


# Where it ends.


async def test_it_ends_at_max_tokens_and_at_the_end_of_the_context() -> None:
    spoken = await answer(request(max_tokens=5))
    assert (len(spoken.token_ids), spoken.finish) == (5, FinishReason.LENGTH)
    assert [output.completion_tokens for output in spoken.outputs] == [1, 2, 3, 4, 5]
    spoken = await answer(request(prompt=[300] * 500, max_tokens=100, ignore_eos=True))
    assert (len(spoken.token_ids), spoken.finish) == (12, FinishReason.LENGTH)


async def test_the_end_token_waits_for_min_tokens_and_can_be_ignored() -> None:
    natural = await answer(request(max_tokens=400, seed=2))
    end = len(natural.token_ids)
    later = await answer(request(max_tokens=400, seed=2, min_tokens=end))
    assert later.token_ids[: end - 1] == natural.token_ids[:-1]
    assert later.token_ids[end - 1] != simulated_model.END
    endless = await answer(request(max_tokens=400, ignore_eos=True))
    assert (len(endless.token_ids), endless.finish) == (400, FinishReason.LENGTH)
    assert simulated_model.END not in endless.token_ids


async def test_a_stop_token_ends_it_and_is_no_text() -> None:
    whole = await answer(request(max_tokens=60, ignore_eos=True))
    stop = word(".")
    at = whole.token_ids.index(stop)
    stopped = await answer(request(max_tokens=60, ignore_eos=True, stop_token_ids=(stop,)))
    assert (stopped.token_ids, stopped.finish) == (whole.token_ids[: at + 1], FinishReason.STOP)
    assert stopped.text == whole.text[: whole.text.index(".")]
    later = await answer(request(max_tokens=60, ignore_eos=True, stop_token_ids=(stop,), min_tokens=at + 1))
    assert len(later.token_ids) > at + 1


async def test_a_stop_string_across_tokens_ends_it_and_is_held_back_until_it_is_known() -> None:
    whole = await answer(request(max_tokens=60, ignore_eos=True))
    at = whole.text.index(".")
    stop = whole.text[at - 3 : at + 4]  # the end of a word, the full stop, and the beginning of the next sentence
    stopped = await answer(request(max_tokens=60, ignore_eos=True, stop=(stop,)))
    assert (stopped.text, stopped.finish) == (whole.text[: at - 3], FinishReason.STOP)
    shown = ""
    for number, output in enumerate(stopped.outputs[:-1], start=1):
        shown += output.text
        said = "".join(simulated_model.TEXT[token] for token in stopped.token_ids[:number])
        assert shown + output.held_text == said
    assert stopped.outputs[-2].held_text == stop[:4]


async def test_held_text_is_delivered_when_it_was_no_stop_string() -> None:
    whole = await answer(request(max_tokens=3, ignore_eos=True))
    last = simulated_model.TEXT[whole.token_ids[-1]]
    spoken = await answer(request(max_tokens=3, ignore_eos=True, stop=(last + " never said",)))
    assert spoken.outputs[-1].text == last
    assert spoken.text == whole.text


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("prompt_token_ids", request(prompt=[])),
        ("prompt_token_ids", request(prompt=[300] * 512)),
        ("prompt_token_ids", request(prompt=[300] * 500, delivered=[300] * 12, max_tokens=20)),
        ("token_ids", request(prompt=[simulated_model.VOCABULARY_TOKENS])),
        ("token_ids", request(stop_token_ids=(-1,))),
        ("max_tokens", request(max_tokens=0)),
        ("max_tokens", request(delivered=[300, 301], max_tokens=2)),
        ("min_tokens", request(min_tokens=17)),
        ("temperature", request(temperature=float("nan"))),
        ("top_p", request(top_p=0.0)),
        ("top_k", request(top_k=-1)),
        ("seed", request(seed=2**64)),
        ("stop", request(stop=("",))),
        ("adapter", request(adapter="acme")),
    ],
)
async def test_what_can_never_run_is_refused_by_name(field: str, wrong: object) -> None:
    engine = await hand_engine()
    with pytest.raises(MeshError) as caught:
        engine.add(wrong)  # type: ignore[arg-type]
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert field in [violation.field for violation in caught.value.field_violations]
    assert engine.step() is None


# Who runs when.


async def test_after_an_abort_no_step_starts_for_it() -> None:
    engine = await hand_engine(replace(SMALL, max_num_seqs=2))
    for attempt_id in ("a/1", "b/1", "c/1"):
        engine.add(request(attempt_id, ignore_eos=True))
    first = engine.step()
    assert first is not None
    assert first.participants == ["a/1", "b/1"]
    engine.abort("a/1")
    engine.abort("nobody/1")
    rest = play(engine)
    assert all("a/1" not in step.participants for step in rest)
    assert "a/1" not in transcripts(rest)
    assert len(transcripts(rest)["c/1"].token_ids) == 16
    engine.add(request("d/1", ignore_eos=True))
    engine.abort("d/1")  # before it was in any step
    assert engine.step() is None
    assert engine.state().kv_tokens_used == 0


async def test_prompts_are_computed_in_chunks_beside_those_who_decode() -> None:
    engine = await hand_engine()
    engine.add(request("short/1", ignore_eos=True))
    assert engine.step() is not None
    engine.add(request("long/1", prompt=[300] * 150, ignore_eos=True, salt="x"))
    steps = [engine.step() for _ in range(4)]
    assert [step.participants for step in steps if step] == [["short/1", "long/1"]] * 4
    assert [[output.attempt_id for output in step.outputs] for step in steps if step] == [
        ["short/1"],  # 63 tokens of 150: one of the budget of 64 belongs to the other
        ["short/1"],
        ["short/1", "long/1"],
        ["short/1", "long/1"],
    ]


async def test_the_lower_priority_number_runs_first() -> None:
    engine = await hand_engine(replace(SMALL, max_num_seqs=1))
    for number, priority in enumerate([5, 0, 5, -3]):
        engine.add(request(f"{number}/1", priority=priority, max_tokens=1))
    assert (engine.state().running, engine.state().waiting) == (0, 4)
    assert [step.participants for step in play(engine)] == [["3/1"], ["1/1"], ["0/1"], ["2/1"]]


async def test_when_blocks_run_out_the_last_in_rank_is_computed_again_and_says_the_same() -> None:
    narrow = replace(SMALL, kv_tokens=160, max_model_len=128)
    engine = await hand_engine(narrow)
    asked = [
        request(f"{n}/1", prompt=range(300 + n, 320 + n), max_tokens=60, ignore_eos=True, salt=str(n)) for n in range(4)
    ]
    for one in asked:
        engine.add(one)
    spoken = transcripts(play(engine))
    assert engine.state().preemptions > 0
    assert engine.state().kv_tokens_used == 0
    for one in asked:
        assert spoken[one.attempt_id].token_ids == (await answer(one)).token_ids
        assert spoken[one.attempt_id].outputs[0].cached_tokens == 0


# The prefix cache.


async def test_the_prefix_cache_gives_whole_blocks_to_the_same_salt_alone() -> None:
    engine = await hand_engine()
    prompt = list(range(300, 313))  # three blocks of 4, and one token

    def cached(attempt_id: str, salt: str, prompt: list[int]) -> int:
        engine.add(request(attempt_id, prompt, salt=salt, max_tokens=2))
        return transcripts(play(engine))[attempt_id].outputs[-1].cached_tokens

    assert cached("a/1", "acme", prompt) == 0
    assert cached("b/1", "globex", prompt) == 0
    assert cached("c/1", "acme", prompt) == 12
    assert cached("d/1", "acme", prompt[:12]) == 8  # the last token is always computed
    assert cached("e/1", "acme", [1, *prompt]) == 0


async def test_cached_blocks_make_room_for_running_streams() -> None:
    engine = await hand_engine(replace(SMALL, kv_tokens=132, max_model_len=128))
    engine.add(request("a/1", prompt=[300] * 100, max_tokens=1))
    play(engine)
    engine.add(request("b/1", prompt=[301] * 100, max_tokens=20, ignore_eos=True))
    assert len(transcripts(play(engine))["b/1"].token_ids) == 20
    engine.add(request("c/1", prompt=[300] * 100, max_tokens=1))
    assert transcripts(play(engine))["c/1"].outputs[0].cached_tokens < 96


# The window.


async def test_adapters_take_turns_in_their_slots_and_keep_their_caches_apart(clock: FakeClock) -> None:
    two = replace(SMALL, max_adapters=2)
    engine = await hand_engine(two, cost=A10G, adapter_load_s=1.0, monotonic=clock.monotonic)

    def run(id: str, adapter: str) -> tuple[int, bool]:
        """Returns what was cached, and whether the adapter had to be loaded."""
        engine.add(request(id, adapter=adapter, max_tokens=1))
        steps = play(engine)
        clock.advance(10)
        return transcripts(steps)[id].outputs[-1].cached_tokens, any(s.ended_at - s.started_at > 1 for s in steps)

    assert engine.state().adapters == ()
    assert run("a/1", "a") == (0, True)
    assert run("b/1", "b") == (0, True)
    assert run("a/2", "a") == (8, False)
    assert run("bare", "") == (0, False)
    assert run("c/1", "c") == (0, True), "b was used least recently and gave its slot"
    assert engine.state().adapters == ("a", "c")
    assert run("b/2", "b") == (8, True), "what b had computed is still cached"
    assert engine.state().adapters == ("b", "c")


async def test_one_that_finds_no_slot_holds_nobody_up() -> None:
    engine = await hand_engine(replace(SMALL, max_adapters=1))
    engine.add(request("a/1", adapter="a", max_tokens=3, ignore_eos=True))
    engine.add(request("b/1", adapter="b", max_tokens=1))
    engine.add(request("a/2", adapter="a", max_tokens=1))
    step = engine.step()
    assert step is not None
    assert set(step.participants) == {"a/1", "a/2"}
    engine.abort("a/1")
    step = engine.step()
    assert step is not None
    assert set(step.participants) == {"b/1"}
    assert engine.state().adapters == ("b",)


async def test_a_stream_stays_within_its_window() -> None:
    engine = await hand_engine(window_tokens=4)
    engine.add(request("a/1", max_tokens=10, ignore_eos=True))
    engine.add(request("b/1", max_tokens=10, ignore_eos=True))
    assert [step.participants for step in play(engine)] == [["a/1", "b/1"]] * 4
    engine.delivered("a/1", 3)
    engine.delivered("a/1", 1)  # late, and older
    engine.delivered("gone/1", 3)
    assert [step.participants for step in play(engine)] == [["a/1"]] * 3
    engine.delivered("a/1", 1_000)  # it cannot have delivered what was not there
    assert len(play(engine)) == 3
    assert engine.state().running == 1
    engine.abort("b/1")
    assert engine.state().running == 0


async def test_a_window_counts_the_tokens_of_this_attempt_only() -> None:
    whole = await answer(request(max_tokens=12, ignore_eos=True))
    engine = await hand_engine(window_tokens=4)
    engine.add(request("a/2", delivered=whole.token_ids[:5], max_tokens=12, ignore_eos=True))
    assert transcripts(play(engine))["a/2"].token_ids == whole.token_ids[5:9]
    engine.delivered("a/2", 4)
    assert transcripts(play(engine))["a/2"].token_ids == whole.token_ids[9:]


# Time, death, and the loop.


async def test_a_step_takes_the_time_of_its_cost_model(clock: FakeClock) -> None:
    cost = StepCost(fixed=1.0, per_sequence=0.1, per_context_token=0.001, per_prefill_token=0.01)
    engine = await hand_engine(cost=cost, monotonic=clock.monotonic, speed=2.0)
    clock.advance(10.0)
    engine.add(request("a/1", max_tokens=3, ignore_eos=True))
    engine.add(request("b/1", max_tokens=2, ignore_eos=True))
    steps = play(engine)
    assert [step.index for step in steps] == [0, 1, 2]
    assert steps[0].started_at == 10.0
    lengths = [step.ended_at - step.started_at for step in steps]
    assert lengths == pytest.approx([(1.0 + 0.2) / 2, (1.0 + 0.2 + 0.022) / 2, (1.0 + 0.1 + 0.012) / 2])
    assert steps[1].started_at == steps[0].ended_at


async def test_a_dead_engine_ends_everything_with_an_error() -> None:
    engine = SimulatedEngine(SMALL, FREE, manual=True)
    steps: list[Step] = []
    await engine.start(steps.append)
    engine.add(request("a/1"))
    engine.step()
    engine.add(request("b/1"))
    engine.fail("the power is gone")
    assert {output.attempt_id: (output.finish, output.error) for output in steps[-1].outputs} == {
        "a/1": (FinishReason.ERROR, "the power is gone"),
        "b/1": (FinishReason.ERROR, "the power is gone"),
    }
    assert not engine.state().healthy
    with pytest.raises(MeshError) as caught:
        engine.add(request("c/1"))
    assert caught.value.code is Code.UNAVAILABLE
    await engine.close()


@pytest.mark.parametrize(("cost", "speed"), [(FREE, 1.0), (A10G, 1e6)])
async def test_it_runs_by_itself_and_sleeps_when_nothing_can_run(cost: StepCost, speed: float) -> None:
    engine = SimulatedEngine(SMALL, cost, speed=speed, window_tokens=4)
    steps: list[Step] = []
    ended = asyncio.Event()

    def sink(step: Step) -> None:
        steps.append(step)
        for output in step.outputs:
            if output.finish is None and output.attempt_id == "free/1":
                engine.delivered(output.attempt_id, output.completion_tokens)
            if output.finish is not None:
                ended.set()

    await engine.start(sink)
    engine.add(request("free/1", max_tokens=50, ignore_eos=True))
    engine.add(request("blocked/1", max_tokens=50, ignore_eos=True))
    await ended.wait()
    spoken = transcripts(steps)
    assert spoken["free/1"].token_ids == (await answer(request(max_tokens=50, ignore_eos=True))).token_ids
    assert spoken["blocked/1"].token_ids == spoken["free/1"].token_ids[:4]
    ticks = len(steps)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(steps) == ticks
    await engine.close()
    assert engine.state().running == 0
