"""Flushers: whatever the clients' speed, each gets its tokens once and in order, and a slow one holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from forebay.errors import Code, MeshError
from forebay.router.client import GatheredAnswer, Started
from forebay.router.delivery import LOOK_EVERY_S, Delivery, Outflow
from forebay.router.domain.stream import Piece, TokenStream
from forebay.testing.clock import FakeClock


class GatedClient(GatheredAnswer):
    """A client whose writes end only while its gate is open."""

    def __init__(self, *, is_open: bool = True) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self.writing = 0
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()

    async def deliver(self, piece: Piece) -> None:
        self.writing += 1
        assert self.writing == 1, "one writer at a time"
        await self.gate.wait()
        self.writing -= 1
        self.pieces.append(piece)
        await super().deliver(piece)


class LostClient(GatheredAnswer):
    """A client that has gone away."""

    async def deliver(self, piece: Piece) -> None:
        raise MeshError(Code.CANCELLED, "CLIENT_GONE", "gone")


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[None]:
    task = asyncio.create_task(delivery.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ticks(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def push(delivery: Delivery, outflow: Outflow, *tokens: int) -> None:
    text = "".join(f"{token}," for token in tokens)
    assert outflow.tokens.append(tokens, text, "", outflow.tokens.received + len(tokens))
    if not outflow.queued:
        delivery.ready(outflow)


async def test_a_client_that_keeps_up_gets_a_token_per_message(clock: FakeClock) -> None:
    delivery, client = Delivery(clock), GatedClient()
    outflow = Outflow(TokenStream(10), client)
    async with running(delivery):
        await ticks()
        for token in range(3):
            push(delivery, outflow, token)
            await ticks()
    assert client.pieces == [(0, [0], "0,"), (1, [1], "1,"), (2, [2], "2,")]


async def test_tokens_gather_while_a_write_is_awaited(clock: FakeClock) -> None:
    delivery, client = Delivery(clock), GatedClient(is_open=False)
    outflow = Outflow(TokenStream(10), client)
    async with running(delivery):
        await ticks()
        for token in range(4):
            push(delivery, outflow, token)
            await ticks()
        client.gate.set()
        await outflow.drained()
    assert client.pieces == [(0, [0], "0,"), (1, [1, 2, 3], "1,2,3,")]


async def crowd(delivery: Delivery, slow: int) -> tuple[list[Outflow], Outflow]:
    """Has a token for each of so many clients that do not read, and after them for one that does."""
    clogged = [Outflow(TokenStream(10), GatedClient(is_open=False)) for _ in range(slow)]
    quick = Outflow(TokenStream(10), GatedClient())
    await ticks()
    for outflow in [*clogged, quick]:
        push(delivery, outflow, 1)
    return clogged, quick


async def test_slow_clients_hold_up_nobody_and_lose_nothing(clock: FakeClock) -> None:
    delivery = Delivery(clock, flushers=2)
    async with running(delivery):
        slow, quick = await crowd(delivery, 3)
        await ticks()
        assert quick.queued, "both flushers are stuck"
        for _ in range(2):
            clock.advance(LOOK_EVERY_S)
            await ticks()
        await quick.drained()
        for outflow in slow:
            push(delivery, outflow, 2)
            outflow.client.gate.set()  # type: ignore[attr-defined]
        for outflow in slow:
            await outflow.drained()
        # The flushers that were stuck have left; those in their places go on.
        push(delivery, quick, 2)
        await quick.drained()
        assert len(asyncio.all_tasks()) == 2 + 2  # this test, `run`, and two flushers
    assert all(outflow.client.token_ids == [1, 2] for outflow in [*slow, quick])  # type: ignore[attr-defined]


@pytest.mark.slow
async def test_many_slow_clients_at_once_hold_up_the_others_for_a_second(clock: FakeClock) -> None:
    delivery = Delivery(clock, flushers=4)
    async with running(delivery):
        slow, quick = await crowd(delivery, 1000)
        for _ in range(10):
            clock.advance(LOOK_EVERY_S)
            await ticks()
        assert quick.client.token_ids == [1]  # type: ignore[attr-defined]
        for outflow in slow:
            outflow.client.gate.set()  # type: ignore[attr-defined]
        for outflow in slow:
            await outflow.drained()
        await ticks()
        assert len(asyncio.all_tasks()) == 2 + 4, "what was started for them is gone"
        push(delivery, quick, 2)
        await quick.drained()
    assert all(outflow.client.token_ids == [1] for outflow in slow)  # type: ignore[attr-defined]


async def test_nothing_more_is_sent_to_a_client_that_is_gone(clock: FakeClock) -> None:
    delivery, outflow = Delivery(clock), Outflow(TokenStream(10), LostClient())
    async with running(delivery):
        push(delivery, outflow, 1)
        for _ in range(2):
            with pytest.raises(MeshError, match="CLIENT_GONE"):
                await outflow.drained()
            assert outflow.queued, "so that nobody queues it again"


async def test_a_client_that_reads_nothing_is_cut_off_and_no_other(clock: FakeClock) -> None:
    delivery = Delivery(clock, flushers=1, slow_client_s=60)
    cut: list[str] = []
    stuck = Outflow(TokenStream(10), GatedClient(is_open=False), lambda: cut.append("stuck"))
    slow = Outflow(TokenStream(10), GatedClient(is_open=False), lambda: cut.append("slow"))
    async with running(delivery):
        await ticks()
        push(delivery, stuck, 1)
        push(delivery, slow, 1)
        for tenth in range(599):
            clock.advance(LOOK_EVERY_S)
            await ticks(4)
            if tenth % 300 == 299:
                slow.client.gate.set()  # type: ignore[attr-defined]
                await ticks()
                slow.client.gate.clear()  # type: ignore[attr-defined]
                push(delivery, slow, 2)
        assert cut == []
        for _ in range(2):
            clock.advance(LOOK_EVERY_S)
            await ticks()
        assert cut == ["stuck"]
        with pytest.raises(MeshError, match="CLIENT_TOO_SLOW"):
            await stuck.drained()
        for outflow in (slow, stuck):
            outflow.client.gate.set()  # type: ignore[attr-defined]
        await slow.drained()
    assert slow.client.token_ids == [1, 2]  # type: ignore[attr-defined]
    assert cut == ["stuck"]


async def test_the_worker_is_told_after_each_write(clock: FakeClock) -> None:
    delivery, outflow = Delivery(clock), Outflow(TokenStream(10), GatedClient())
    told: list[int] = []
    outflow.sent = lambda: told.append(outflow.tokens.sent)
    async with running(delivery):
        await ticks()
        push(delivery, outflow, 1)
        await ticks()
        push(delivery, outflow, 2, 3)
        await outflow.drained()
    assert told == [1, 3]


async def test_an_answer_can_be_gathered_whole() -> None:
    answer = GatheredAnswer()
    await answer.started(Started("id", "m", 3, ""))
    await answer.deliver((0, [1, 2], "ab"))
    await answer.deliver((2, [3], "c"))
    assert (answer.token_ids, answer.text) == ([1, 2, 3], "abc")
    assert answer.end is None
