"""Any process may be killed at any time: the launcher starts it again, the others do not notice beyond a reconnect."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from forebay.client import ForebayClient
from forebay.testing.processes import MeshProcesses

from .conftest import FAST

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]


async def test_each_process_killed_three_times(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "data", environment=FAST) as mesh:
        names = list(mesh.state()["processes"])
        assert {name.rstrip("-0123456789") for name in names} == {
            "valkey", "metering", "quota", "scheduler", "worker", "router",
        }  # fmt: skip
        order = names * 3
        random.Random(20).shuffle(order)
        async with ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=120) as client:
            await client.generate("Before the storm", max_tokens=2)
            for name in order:
                before = {other: mesh.pid(other) for other in names}
                mesh.kill(name)
                await restarted(mesh, name, before[name])
                answer = await client.generate(f"After {name} came back", max_tokens=2)
                assert answer.usage.completion > 0
                after = {other: mesh.pid(other) for other in names}
                assert {other for other in names if before[other] != after[other]} == {name}


async def restarted(mesh: MeshProcesses, name: str, old_pid: int) -> None:
    """Returns once the launcher has started a process again and found everything healthy."""
    async with asyncio.timeout(60):
        while not (mesh.pid(name) != old_pid and mesh.state()["ready"]):
            await asyncio.sleep(0.02)
