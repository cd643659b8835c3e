"""A client that goes away, with an engine that is stepped by hand: what is computed for it after that is known to the step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.client import ForebayClient
from forebay.testing.mesh import Mesh
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow]


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine(manual=True)


@pytest.fixture
async def mesh(tmp_path: Path, redis_url: str, engine: SimulatedEngine) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path, redis_url, engine, {"acme": {"plan": "enterprise"}}) as mesh:
        yield mesh


async def until_running(engine: SimulatedEngine, count: int) -> None:
    """Returns once the engine holds `count` requests."""
    async with asyncio.timeout(60):
        while engine.state().running + engine.state().waiting != count:
            await asyncio.sleep(0)


async def test_no_step_after_the_worker_received_the_cancel(mesh: Mesh, engine: SimulatedEngine) -> None:
    async with ForebayClient(mesh.address, mesh.keys["acme"]) as client:
        leaving = client.stream("Tell me everything.", max_tokens=500, ignore_eos=True)
        staying = client.stream("Tell me something.", max_tokens=500, ignore_eos=True)
        left, stayed = aiter(leaving), aiter(staying)
        first = [asyncio.ensure_future(anext(left)), asyncio.ensure_future(anext(stayed))]
        await until_running(engine, 2)
        for _ in range(3):
            step = engine.step()
            assert step is not None
            assert len(step.participants) == 2
        await asyncio.gather(*first)
        assert leaving.started is not None

        await left.aclose()  # the client goes away; the router hears of it and tells the worker
        await until_running(engine, 1)

        for _ in range(5):
            step = engine.step()
            assert step is not None
            assert [id for id in step.participants if id.startswith(leaving.started.request_id)] == []
            assert len(step.participants) == 1

        async with asyncio.timeout(60):
            async for page in client.usage(request_ids=[leaving.started.request_id], follow=True):
                if page.entries:
                    break
        (entry,) = page.entries
        assert (entry.outcome, entry.completion_tokens) == ("cancelled", 3)
        assert entry.prompt_tokens == leaving.started.prompt_tokens
        await stayed.aclose()
