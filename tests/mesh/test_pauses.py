"""A worker is paused (SIGSTOP) in mid-stream and wakes: its streams go on, each token comes once and is billed once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from forebay.client import ForebayClient, UsageEntry
from forebay.testing.processes import MeshProcesses

from .test_failover import busy_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = "Tell me the story of an old water mill."
TOKENS = 600
SEED = 11
PAUSE_S = 12.0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_stream_survives_the_pause_of_its_worker(tmp_path: Path, workers: int) -> None:
    with MeshProcesses(tmp_path / "data", workers=workers) as mesh:
        async with ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=240) as client:
            expected = await answer(client)
            stream = client.stream(QUESTION, max_tokens=TOKENS, ignore_eos=True, seed=SEED)
            tokens: list[int] = []
            waking: asyncio.Task[None] | None = None
            async for delta in stream:
                assert delta.position == len(tokens)
                tokens += delta.token_ids
                if waking is None and len(tokens) >= 10:
                    waking = asyncio.create_task(pause(mesh.pid(await busy_worker(mesh)), PAUSE_S))
            assert waking is not None
            assert tokens == expected
            await waking
            # Newer requests are served by the worker that has woken, too.
            assert await answer(client) == expected
            assert stream.started is not None
            rows = await ledger(client, stream.started.request_id)
    assert [row.prompt_tokens for row in rows] == [stream.started.prompt_tokens, *[0] * (len(rows) - 1)]
    assert sum(row.completion_tokens for row in rows) == TOKENS


async def answer(client: ForebayClient) -> list[int]:
    """Returns the tokens of an undisturbed answer."""
    generation = await client.generate(QUESTION, max_tokens=TOKENS, ignore_eos=True, seed=SEED)
    return list(generation.choices[0].token_ids)


async def pause(pid: int, seconds: float) -> None:
    """Stops a process for so long."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


async def ledger(client: ForebayClient, request_id: str) -> list[UsageEntry]:
    """Returns the rows of a request in order of attempt, once they bill all of its tokens."""
    rows: list[UsageEntry] = []
    async with asyncio.timeout(120):
        async for page in client.usage(request_ids=[request_id], follow=True):
            rows += page.entries
            if sum(row.completion_tokens for row in rows) >= TOKENS:
                return sorted(rows, key=lambda row: row.attempt)
    raise AssertionError("the stream of usage ended")
