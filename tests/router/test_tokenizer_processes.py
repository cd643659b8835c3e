"""Long prompts in processes of their own: the same tokens, no harm to anybody when one ends, and turns for tenants."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest

from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError
from forebay.router.domain.ask import Message, ModelCard
from forebay.router.hf_tokenizer import HfTokenizer
from forebay.router.tokenizer import ByteTokenizer
from forebay.router.tokenizer_frames import PREFIX, Job, ModelFiles, Tokens, frame, job_frame, read_answer
from forebay.router.tokenizer_process import serve, tokens_of
from forebay.router.tokenizer_processes import TokenizerProcesses

from .tiny_model import write_model

CARD = ModelCard("tiny", context_tokens=100, default_max_tokens=8)


def text_job(text: str, *, most_ids: int = 1_000_000, system_prompt: str = "") -> Job:
    return Job("tiny", system_prompt, most_ids, router_pb2.Prompt(text=text).SerializeToString())


def test_a_prompt_with_too_many_tokens_is_only_counted() -> None:
    few = tokens_of(text_job("abc", most_ids=3), ByteTokenizer(), CARD, 1_000)
    many = tokens_of(text_job("abcd", most_ids=3), ByteTokenizer(), CARD, 1_000)
    assert (few.count, list(few.ids)) == (3, [97, 98, 99])
    assert (many.count, list(many.ids)) == (4, [])


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (router_pb2.Prompt(text="x" * 1_001), "prompt.text"),
        (router_pb2.Prompt(text=""), "prompt.text"),
        (router_pb2.Prompt(), "prompt"),
        (router_pb2.Prompt(tokens={"ids": [1] * 101}), "prompt.tokens.ids"),
        (router_pb2.Prompt(tokens={"ids": [256]}), "prompt.tokens.ids"),
        (router_pb2.Prompt(chat={"messages": [{"role": "root"}]}), "prompt.chat.messages[0].role"),
        (router_pb2.Prompt(chat={"messages": [{"role": "user"}] * 1_025}), "prompt.chat.messages"),
    ],
)
def test_a_prompt_is_checked_where_it_is_read(prompt: router_pb2.Prompt, field: str) -> None:
    job = Job("tiny", "", 10, prompt.SerializeToString())
    with pytest.raises(MeshError) as caught:
        tokens_of(job, ByteTokenizer(), CARD, 1_000)
    assert (caught.value.code, caught.value.field_violations[0].field) == (Code.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("form", ["text", "tokens"])
def test_a_long_prompt_does_not_go_round_the_tenants_system_prompt(form: str) -> None:
    prompt = router_pb2.Prompt(text="x") if form == "text" else router_pb2.Prompt(tokens={"ids": [1]})
    with pytest.raises(MeshError, match="system prompt"):
        tokens_of(Job("tiny", "You help.", 10, prompt.SerializeToString()), ByteTokenizer(), CARD, 1_000)


def test_what_is_no_prompt_is_told_so() -> None:
    with pytest.raises(MeshError, match="MALFORMED_MESSAGE"):
        tokens_of(Job("tiny", "", 10, b"\x0a\xff\xff"), ByteTokenizer(), CARD, 1_000)


def answers(sink: io.BytesIO) -> list[Tokens | MeshError]:
    sink.seek(0)
    found: list[Tokens | MeshError] = []
    while prefix := sink.read(PREFIX.size):
        import json

        head_size, body_size = PREFIX.unpack(prefix)
        header, body = json.loads(sink.read(head_size)), sink.read(body_size)
        try:
            found.append(read_answer({"count": -1} | header, body))
        except MeshError as error:
            found.append(error)
    return found


def test_a_process_answers_each_job_and_goes_on_after_one_that_fails(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def encode_text(self: HfTokenizer, text: str) -> list[int]:
        if "secret" in text:
            raise ValueError(text)
        return [1, 2]

    monkeypatch.setattr(HfTokenizer, "encode_text", encode_text)
    hello = frame(
        {"models": [{"name": "tiny", "directory": str(tiny_model), "context_tokens": 9}], "max_prompt_bytes": 9}
    )
    jobs = [text_job("secret"), text_job("x" * 10), text_job("well")]
    sink = io.BytesIO()
    serve(io.BytesIO(b"".join((hello, *map(job_frame, jobs)))), sink)
    _, bug, refused, tokens = answers(sink)
    assert isinstance(bug, MeshError)
    assert (bug.code, bug.reason) == (Code.INTERNAL, "BUG")
    assert isinstance(refused, MeshError)
    assert refused.field_violations[0].field == "prompt.text"
    assert isinstance(tokens, Tokens)
    assert list(tokens.ids) == [1, 2]
    assert "secret" not in capfd.readouterr().err


def processes(model: Path, count: int = 1, **options: float) -> TokenizerProcesses:
    files = [ModelFiles("tiny", str(model), 1_000_000)]
    return TokenizerProcesses(files, processes=count, max_waiting=9, max_prompt_bytes=1 << 20, **options)


@pytest.mark.slow
async def test_the_tokens_are_those_of_the_tokenizer(tiny_model: Path) -> None:
    ours = HfTokenizer(tiny_model)
    text = "the fox sleeps under the old oak tree é 狐 " * 2_000
    chat = router_pb2.Prompt(chat={"messages": [{"role": "user", "content": text}]}).SerializeToString()
    async with processes(tiny_model) as tokenizers:
        tokens = await tokenizers.run("acme", text_job(text))
        assert list(tokens.ids) == ours.encode_text(text)
        tokens = await tokenizers.run("acme", Job("tiny", "Be a fox.", 10**6, chat))
        assert list(tokens.ids) == ours.encode_chat([Message("system", "Be a fox."), Message("user", text)])
        with pytest.raises(MeshError, match=r"prompt\.text"):
            await tokenizers.run("acme", text_job("x" * (1 << 20) + "x"))


@pytest.mark.slow
async def test_a_process_that_dies_or_hangs_is_replaced(tiny_model: Path) -> None:
    async with processes(tiny_model, within_s=0.2) as tokenizers:
        (process,) = tokenizers._all
        for number in (signal.SIGKILL, signal.SIGSTOP):
            assert (await tokenizers.run("acme", text_job("the fox"))).count > 1
            assert process._process is not None
            pid = process._process.pid
            os.kill(pid, number)
            with pytest.raises(MeshError) as caught:
                await tokenizers.run("acme", text_job("the fox"))
            assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "TOKENIZER_UNAVAILABLE")
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_a_process_that_is_dead_at_once_or_cannot_be_started_ends_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop says RuntimeError of a pipe that has been closed before it is written to."""

    class Dead:
        pid, returncode, stdout = 0, 1, asyncio.StreamReader()

        class stdin:
            @staticmethod
            def write(message: bytes) -> None:
                raise RuntimeError("the handler is closed")

    async def started(*_: object, **__: object) -> Dead:
        return Dead()

    async def not_started(*_: object, **__: object) -> Dead:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async with processes(tiny_model) as tokenizers:
        for start in (started, not_started):
            monkeypatch.setattr("asyncio.create_subprocess_exec", start)
            await tokenizers.warm()
            with pytest.raises(MeshError) as caught:
                await tokenizers.run("acme", text_job("the fox"))
            assert caught.value.reason == "TOKENIZER_UNAVAILABLE"


@pytest.mark.slow
async def test_a_caller_that_leaves_leaves_its_place_in_order(tiny_model: Path) -> None:
    async with processes(tiny_model) as tokenizers:
        await tokenizers.warm()
        first = asyncio.create_task(tokenizers.run("flood", text_job("the fox " * 50_000)))
        second = asyncio.create_task(tokenizers.run("acme", text_job("the fox")))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).count == len(HfTokenizer(tiny_model).encode_text("the fox"))
        assert len(tokenizers._idle) == 1


@pytest.mark.slow
async def test_one_tenants_long_prompts_leave_another_a_process(tiny_model: Path) -> None:
    async with processes(tiny_model, count=2) as tokenizers:
        await tokenizers.warm()
        flood = [asyncio.create_task(tokenizers.run("flood", text_job("the fox " * 100_000))) for _ in range(4)]
        await asyncio.sleep(0)
        assert (await tokenizers.run("acme", text_job("the fox"))).count > 1
        assert not any(task.done() for task in flood)
        await asyncio.gather(*flood)


@pytest.mark.slow
async def test_the_processes_end_with_the_router(tiny_model: Path) -> None:
    async with processes(tiny_model, count=2) as tokenizers:
        await tokenizers.warm()
        pids = [process._process.pid for process in tokenizers._all if process._process is not None]
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_tiny_model_is_what_these_tests_think(tmp_path: Path) -> None:
    assert HfTokenizer(write_model(tmp_path)).vocabulary > 256
