"""The Python client against a router that answers from a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from forebay.client import Code, ForebayClient, MeshError, Message
from forebay.errors import QuotaViolation

from .conftest import KEY, REQUEST_ID, TRACE_ID, ScriptedRouter


async def test_a_stream_gives_deltas_and_then_what_it_took(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        stream = client.stream("The capital of France?", max_tokens=5, temperature=0.0, stop=["\n"])
        deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == "Paris it is."
    assert [(delta.position, delta.token_ids) for delta in deltas] == [(0, (1,)), (1, (2,)), (2, (3,))]
    assert stream.started is not None
    assert (stream.started.request_id, stream.started.trace_id) == (REQUEST_ID, TRACE_ID)
    assert stream.finished is not None
    assert stream.finished.reasons == ("stop",)
    assert (stream.finished.usage.prompt, stream.finished.usage.completion) == (7, 3)
    assert stream.finished.time_to_first_token == 0.12


async def test_what_is_not_said_is_left_to_the_model(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        await client.generate([Message("system", "Be brief."), Message("user", "Hello")], temperature=0.0)
    assert router.options is not None
    assert [turn.role for turn in router.options.prompt.chat.messages] == ["system", "user"]
    assert router.options.sampling.HasField("temperature")  # 0 is a choice, not the default
    assert not router.options.sampling.HasField("max_tokens")
    assert not router.options.sampling.HasField("seed")


async def test_leaving_a_stream_takes_the_request_back(router: ScriptedRouter) -> None:
    router.hang = True
    async with ForebayClient(router.address, KEY) as client:
        async for delta in client.stream("Hello"):
            if delta.position == 2:
                break
        async with asyncio.timeout(60):
            await router.cancelled.wait()


async def test_a_stream_that_is_cut_is_no_answer(router: ScriptedRouter) -> None:
    router.cut = True
    async with ForebayClient(router.address, KEY) as client:
        with pytest.raises(MeshError) as caught:
            [delta async for delta in client.stream("Hello")]
    assert caught.value.reason == "STREAM_CUT"


@asynccontextmanager
async def wire_to(address: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A wire to an address: gives its own address, and what cuts every connection through it."""
    host, _, port = address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    cut()
    server.close()


async def test_a_router_that_dies_in_the_middle_of_an_answer_is_told_as_that(router: ScriptedRouter) -> None:
    router.hang = True
    async with wire_to(router.address) as (address, cut), ForebayClient(address, KEY) as client:

        async def read() -> None:
            async for delta in client.stream("Hello"):
                if delta.position == 2:
                    cut()

        with pytest.raises(MeshError) as caught:
            await read()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "STREAM_CUT")
    assert caught.value.message.startswith(
        f"the connection to the router at {address} broke off after 3 tokens of the answer."
    )
    assert caught.value.metadata["request_id"] == REQUEST_ID


async def test_a_router_that_dies_before_it_answers_is_told_as_that(router: ScriptedRouter) -> None:
    router.hang, router.endless = True, True
    async with wire_to(router.address) as (address, cut), ForebayClient(address, KEY) as client:

        async def read() -> None:
            async for _ in client.usage(follow=True):
                cut()

        with pytest.raises(MeshError) as caught:
            await read()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "CONNECTION_LOST")
    assert f"the connection to the router at {address} broke off" in caught.value.message


async def test_a_deadline_says_whose_it_is(router: ScriptedRouter) -> None:
    router.hang = True
    async with ForebayClient(router.address, KEY, timeout=0.1) as client:
        with pytest.raises(MeshError, match=r"no whole answer came within the client's timeout of 0\.1 s") as caught:
            [delta async for delta in client.stream("Hello")]
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "TIMEOUT")


async def test_refusals_arrive_whole(router: ScriptedRouter) -> None:
    violation = QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 20)
    router.refuse = MeshError(
        Code.RESOURCE_EXHAUSTED, "TOKENS_PER_MINUTE", "no tokens left", retry_after=1.5, quota_violations=[violation]
    )
    async with ForebayClient(router.address, KEY) as client:
        for ask in (client.generate("Hello"), anext(aiter(client.stream("Hello")))):
            with pytest.raises(MeshError) as caught:
                await ask
            assert caught.value.reason == "TOKENS_PER_MINUTE"
            assert caught.value.retry_after == 1.5
            assert caught.value.quota_violations == (violation,)


async def test_a_key_that_is_not_known(router: ScriptedRouter) -> None:
    for key in ("fb_wrong", "fb_größe", "fb_\n"):
        async with ForebayClient(router.address, key) as client:
            with pytest.raises(MeshError) as caught:
                await client.generate("Hello")
        assert caught.value.code is Code.UNAUTHENTICATED


async def test_a_key_as_it_comes_from_a_file(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, f"{KEY}\n") as client:
        assert await client.list_models()


async def test_models_come_from_all_pages(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        models = await client.list_models()
        count = await client.count_tokens("Hello")
    assert [(model.name, model.adapters) for model in models] == [("a", ()), ("b", ("x",))]
    assert (count.prompt_tokens, count.remaining_context) == (7, 93)


async def test_usage_is_what_was_billed(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        pages = [page async for page in client.usage()]
        assert [page async for page in client.usage(request_ids=[])] == []
        totals = await client.sum_usage(["model", "day"])
    assert [page.cursor for page in pages] == ["0", "1"]
    ((entry,), ()) = pages[1].entries, pages[0].entries
    assert (entry.prompt_tokens, entry.completion_tokens, entry.cost_nano_usd) == (7, 3, 1_234)
    assert entry.gpu_seconds == 0.2  # recomputation is nobody's
    assert (entry.outcome, entry.finished_at, entry.time_to_first_token) == ("completed", 1_700_000_000, None)
    assert [total.group for total in totals] == [("USAGE_DIMENSION_MODEL", "USAGE_DIMENSION_DAY")]


async def test_an_unknown_dimension_never_leaves(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        with pytest.raises(ValueError, match="'colour' is not one of tenant, key, model, day, outcome"):
            await client.sum_usage(["colour"])
