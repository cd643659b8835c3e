"""Clocks that step under a running mesh: it serves on within seconds, whoever's clock it is and whichever way it goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forebay.client import ForebayClient
from forebay.testing.movable_clock import MovableClock
from forebay.testing.processes import MeshProcesses

pytestmark = pytest.mark.slow

# Nothing here depends on how long a request takes; without an answer by then there will be none.
PATIENCE_S = 60
# What Valkey keeps a time for, and more.
FOLLOWS_S = 0.3


async def served(mesh: MeshProcesses) -> None:
    """Returns once a request has been served; refusals and what the steps broke are asked again."""
    async with (
        asyncio.timeout(PATIENCE_S),
        ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=20) as client,
    ):
        answer = await client.generate("What time is it?", max_tokens=2)
        assert answer.text


async def test_it_serves_on_when_a_clock_was_ahead_or_behind_for_a_while(tmp_path: Path) -> None:
    clock = MovableClock(tmp_path / "clock")
    with MeshProcesses(tmp_path / "data", environment=dict(clock.environment)) as mesh:
        await served(mesh)
        for name in ("valkey", "scheduler-1", "worker-1", "router-1", "quota", "metering"):
            for ahead in (600, -600):
                for offset in (ahead, 0):
                    clock.set(offset, mesh.pid(name))
                    await asyncio.sleep(FOLLOWS_S)
                    await served(mesh)


async def test_it_serves_on_when_everybody_was_ahead_at_the_first_start(tmp_path: Path) -> None:
    clock = MovableClock(tmp_path / "clock")
    clock.set(300)
    with MeshProcesses(tmp_path / "data", environment=dict(clock.environment)) as mesh:
        await served(mesh)
        clock.set(0)
        await served(mesh)
        for name in ("worker-1", "scheduler-1", "router-1"):
            mesh.kill(name)
            mesh.wait_ready()
            await served(mesh)
