"""The engine port's behaviour on a real vLLM with SmolLM2-135M. One engine for all; it dies in the last test."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from forebay.errors import Code, MeshError
from forebay.worker.engine import EngineRequest, FinishReason, Step
from forebay.worker.model_files import model_directory
from forebay.worker.vllm_config import VllmConfig
from forebay.worker.vllm_engine import VllmEngine

from .builders import Transcript, request, transcripts

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

QUESTION = "What is the capital of France?"


class Bench:
    """The engine, its tokenizer, and all steps so far."""

    def __init__(self, model: Path) -> None:
        self.engine = VllmEngine(model, VllmConfig(max_model_len=512, max_num_seqs=8, kv_cache_memory_bytes=64 << 20))
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.steps: list[Step] = []
        self._stepped = asyncio.Event()

    def sink(self, step: Step) -> None:
        self.steps.append(step)
        self._stepped.set()

    def chat(self, question: str) -> list[int]:
        return self.tokenizer.encode(
            f"<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ).ids

    async def stepped(self) -> None:
        self._stepped.clear()
        await self._stepped.wait()

    async def answers(self, *asked: EngineRequest) -> dict[str, Transcript]:
        """Runs requests to their end."""
        self.steps.clear()
        for one in asked:
            self.engine.add(one)
        while sum(transcript.finish is not None for transcript in transcripts(self.steps).values()) < len(asked):
            await self.stepped()
        return transcripts(self.steps)

    async def answer(self, asked: EngineRequest) -> Transcript:
        return (await self.answers(asked))[asked.attempt_id]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    made = Bench(model_directory("wheel:smollm2"))
    random.seed(5)
    expected = random.Random(5).random()
    with pytest.raises(MeshError) as caught:
        made.engine.add(request())
    assert caught.value.code is Code.UNAVAILABLE
    await made.engine.start(made.sink)
    assert random.random() == expected, "vllm has seeded this process: its span ids would repeat"
    yield made
    await made.engine.close()
    for process in multiprocessing.active_children():  # one that was killed may not have gone yet
        process.join(60)
    assert multiprocessing.active_children() == []


async def test_it_knows_its_capacity(bench: Bench) -> None:
    capacity = bench.engine.capacity
    assert (capacity.block_tokens, capacity.max_num_seqs, capacity.max_model_len) == (32, 8, 512)
    assert capacity.kv_tokens % 32 == 0
    assert capacity.kv_tokens > 1_024
    assert bench.engine.state().healthy


async def test_it_answers(bench: Bench) -> None:
    spoken = await bench.answer(request(prompt=bench.chat(QUESTION), max_tokens=24))
    assert "Paris" in spoken.text
    assert spoken.finish is FinishReason.STOP
    assert spoken.outputs[-1].completion_tokens == len(spoken.token_ids)
    assert spoken.text == bench.tokenizer.decode(spoken.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_its_tokens_and_text_are_those_of_async_llm_called_directly(bench: Bench, temperature: float) -> None:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    questions = [
        QUESTION,
        "Name a colour.",
        "How many legs has a spider?",
        "Say 🙂 in Japanese.",
        "Why is the sky blue?",
    ]
    prompts = [bench.chat(question) for question in questions]
    asked = [
        request(f"{n}/1", prompt, max_tokens=16, temperature=temperature, salt="same")
        for n, prompt in enumerate(prompts)
    ]
    for one, prompt in zip(asked, prompts, strict=True):
        spoken = await bench.answer(one)
        direct = []
        stream = bench.engine._llm.generate(  # type: ignore[union-attr]
            tokens_input(prompt, cache_salt="same"),
            SamplingParams(max_tokens=16, temperature=temperature, seed=7),
            f"direct-{one.attempt_id}",
        )
        async for output in stream:
            direct.append(output.outputs[0])
        assert list(direct[-1].token_ids) == spoken.token_ids
        # AsyncLLM keeps half a character at the end of an answer to itself; ours comes as U+FFFD.
        assert spoken.text in (direct[-1].text, direct[-1].text + "\ufffd")


async def test_only_the_same_salt_hits_the_prefix_cache(bench: Bench) -> None:
    prompt = bench.chat("Tell me of the river. " * 20)
    assert len(prompt) > 3 * 32
    cached = {}
    for attempt_id, salt in (("first/1", "acme"), ("other/1", "globex"), ("again/1", "acme")):
        spoken = await bench.answer(request(attempt_id, prompt, salt=salt, max_tokens=1))
        cached[attempt_id] = spoken.outputs[-1].cached_tokens
    assert cached == {"first/1": 0, "other/1": 0, "again/1": (len(prompt) - 1) // 32 * 32}


async def test_many_at_once_come_in_one_step_and_share_its_time(bench: Bench) -> None:
    began = time.monotonic()
    asked = [request(f"{n}/1", bench.chat(f"Count to {n}."), max_tokens=12, ignore_eos=True) for n in range(12)]
    spoken = await bench.answers(*asked)
    assert all(len(transcript.token_ids) == 12 for transcript in spoken.values())
    assert all(transcript.finish is FinishReason.LENGTH for transcript in spoken.values())
    assert max(len(step.outputs) for step in bench.steps) == 8
    for step in bench.steps:
        assert {output.attempt_id for output in step.outputs} <= set(step.participants)
    busy = sum(step.ended_at - step.started_at for step in bench.steps)
    assert busy <= time.monotonic() - began
    for before, after in zip(bench.steps, bench.steps[1:], strict=False):
        assert before.ended_at <= after.started_at + 1e-9


async def test_after_an_abort_nothing_comes_and_at_most_one_step_more(bench: Bench) -> None:
    bench.steps.clear()
    for attempt_id in ("a/1", "b/1"):
        bench.engine.add(request(attempt_id, bench.chat(QUESTION), max_tokens=200, ignore_eos=True))
    while len(bench.steps) < 3:
        await bench.stepped()
    bench.engine.abort("a/1")
    bench.engine.abort("nobody/1")
    seen = len(bench.steps)
    while len(bench.steps) < seen + 4:
        await bench.stepped()
    after = bench.steps[seen:]
    assert "a/1" not in transcripts(after)
    assert [step.participants for step in after[1:]] == [["b/1"]] * len(after[1:])
    assert bench.engine.state().running == 1
    bench.engine.abort("b/1")
    bench.engine.add(request("never/1", bench.chat(QUESTION)))
    bench.engine.abort("never/1")  # before vLLM has heard of it
    assert (await bench.answer(request("c/1", bench.chat(QUESTION), max_tokens=2))).finish is FinishReason.LENGTH
    assert bench.engine.state().running == 0
    assert bench.engine._llm.output_processor.get_num_unfinished_requests() == 0  # type: ignore[union-attr]


async def test_stop_strings_tokens_and_min_tokens(bench: Bench) -> None:
    prompt = bench.chat(QUESTION)
    whole = await bench.answer(request(prompt=prompt, max_tokens=24))

    async def stopped(**sampling: object) -> Transcript:
        return await bench.answer(request(prompt=prompt, max_tokens=24, **sampling))

    at = whole.text.index(" is Par")
    spoken = await stopped(stop=("never", " is Par"))
    assert (spoken.text, spoken.finish) == (whole.text[:at], FinishReason.STOP)
    assert spoken.outputs[-2].held_text == " is"
    token = whole.token_ids[2]
    spoken = await stopped(stop_token_ids=(token,))
    assert (spoken.token_ids, spoken.finish) == (whole.token_ids[:3], FinishReason.STOP)
    assert spoken.text == bench.tokenizer.decode(whole.token_ids[:2])
    assert len((await stopped(min_tokens=len(whole.token_ids) + 3)).token_ids) > len(whole.token_ids)


async def test_a_stream_continues_elsewhere(bench: Bench) -> None:
    prompt: Sequence[int] = bench.chat(QUESTION)
    whole = await bench.answer(request(prompt=prompt, max_tokens=24, stop=("is Rome",)))
    for cut in (1, 3, 5):
        sent = whole.outputs[:cut]
        delivered = [token for output in sent for token in output.token_ids]
        rest = await bench.answer(
            request("a/2", prompt, delivered, sent[-1].held_text, max_tokens=24, stop=("is Rome",))
        )
        assert delivered + rest.token_ids == whole.token_ids
        assert "".join(output.text for output in sent) + rest.text == whole.text
        assert rest.outputs[0].completion_tokens == cut + 1
    with pytest.raises(MeshError) as caught:
        bench.engine.add(request("a/2", prompt, [300], presence_penalty=1.0))
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_dead_engine_ends_everything_with_an_error(bench: Bench) -> None:
    bench.steps.clear()
    bench.engine.add(request("a/1", bench.chat(QUESTION), max_tokens=200, ignore_eos=True))
    await bench.stepped()
    (core,) = multiprocessing.active_children()
    core.kill()
    while transcripts(bench.steps)["a/1"].finish is None:
        await bench.stepped()
    assert bench.steps[-1].outputs[-1].finish is FinishReason.ERROR
    assert not bench.engine.state().healthy
    assert bench.engine.state().running == 0
    with pytest.raises(MeshError) as caught:
        bench.engine.add(request("b/1"))
    assert caught.value.code is Code.UNAVAILABLE
