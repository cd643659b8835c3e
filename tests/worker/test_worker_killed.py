"""A worker's process that dies by kill -9, and the next one on its spool."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from forebay import killpoints
from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.rpc.client import connect
from forebay.worker.domain.spool_records import replay

from .conftest import METERING, POLICIES, SCHEDULER
from .peers import Metering, Policies, Router, Scheduler, payload, serve, within

pytestmark = pytest.mark.slow


@dataclass
class Peers:
    """A worker's peers, which outlive it."""

    folder: Path
    scheduler: Scheduler
    metering: Metering
    fields: dict[str, Any]

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def arm(self, point: str) -> None:
        (self.folder / "points").mkdir(exist_ok=True)
        (self.folder / "points" / point).touch()

    def command(self) -> list[str]:
        config = self.folder / "worker.yaml"
        config.write_text(yaml.safe_dump(self.fields), encoding="utf-8")
        return [sys.executable, "-m", "forebay.worker", "--config", str(config)]

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, Router, common_pb2.Peer]]:
        """Runs a worker's process, and a router with a session to it."""
        environment = {**os.environ, killpoints.VARIABLE: str(self.folder / "points")}
        with (self.folder / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*self.command(), env=environment, stderr=log, stdout=log)
        try:
            register = await within(self.scheduler.heard("register"))
            async with connect(register.address, caller="test") as channel:
                router = Router(channel, register.worker)
                await router.open()
                yield process, router, register.worker
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Peers]:
    scheduler, metering, policies = Scheduler(), Metering(), Policies("acme")
    async with AsyncExitStack() as stack:
        fields: dict[str, Any] = {"id": "worker-1", "model": "tiny", "engine": "simulated"}
        for name, add, servicer in (
            ("scheduler", SCHEDULER, scheduler),
            ("metering", METERING, metering),
            ("quota", POLICIES, policies),
        ):
            server = await serve(add, servicer, name)
            stack.push_async_callback(server.drain, 0)
            fields[f"{name}_address"] = server.address
        (tmp_path / "points").mkdir()
        yield Peers(tmp_path, scheduler, metering, fields | {"spool_dir": str(tmp_path / "spool")})


def checkpointed(spool: Path) -> int:
    """Returns the tokens of request 2 that the spool knows of."""
    (segment,) = spool.glob("segment-*")
    events = {int(event.id.request_id, 16): event for event in replay(segment.read_bytes()).events}
    return events[2].completion_to


async def test_after_kill_9_in_mid_run_every_attempt_is_accounted_for(peers: Peers) -> None:
    metering = peers.metering
    metering.acknowledging = False
    async with peers.worker() as (process, router, life):
        await router.start(payload(life, 1, max_tokens=2), payload(life, 2, max_tokens=4_000))
        received = 0
        while not received or not checkpointed(peers.spool):
            for delta in (await router.read()).step.deltas:
                received = delta.completion_tokens if delta.ref == 2 else received
        await metering.came(1)
        process.kill()
        await process.wait()
        known = checkpointed(peers.spool)
    assert known > 0
    metering.acknowledging = True
    async with peers.worker() as (process, _, next_life):
        first, *rest = await metering.came(3)
        again, lost = sorted(rest, key=lambda event: event.request_id)
        assert first == again, "it was not acknowledged"
        assert (first.request_id, first.outcome) == (f"{1:032x}", metering_pb2.OUTCOME_COMPLETED)
        assert (lost.request_id, lost.completion_from, lost.completion_to) == (f"{2:032x}", 0, known)
        assert (lost.outcome, lost.source) == (
            metering_pb2.OUTCOME_LOST,
            metering_pb2.EVENT_SOURCE_WORKER_RECOVERY,
        )
        assert lost.worker.incarnation == life.incarnation != next_life.incarnation
        process.send_signal(signal.SIGTERM)
        assert await within(process.wait()) == 0
    async with peers.worker():
        pass
    assert len(metering.events) == 3, "what was acknowledged is not sent again"


@pytest.mark.parametrize(
    ("point", "outcome", "tokens"),
    [
        ("worker.before_spool_sync", metering_pb2.OUTCOME_LOST, 0),
        ("worker.after_add", metering_pb2.OUTCOME_LOST, 0),
        ("worker.after_finish", metering_pb2.OUTCOME_COMPLETED, 3),
    ],
)
async def test_killed_at_each_point(
    peers: Peers, point: str, outcome: metering_pb2.Outcome.ValueType, tokens: int
) -> None:
    peers.arm(point)
    async with peers.worker() as (process, router, life):
        await router.start(payload(life, 1, max_tokens=3))
        assert await within(process.wait()) == -signal.SIGKILL
    assert not peers.metering.events
    async with peers.worker():
        (event,) = await peers.metering.came(1)
    assert (event.outcome, event.completion_to) == (outcome, tokens)


async def test_a_second_worker_on_a_spool_says_why_it_ends(peers: Peers) -> None:
    async with peers.worker():
        second = await asyncio.create_subprocess_exec(*peers.command(), stderr=asyncio.subprocess.PIPE)
        _, said = await within(second.communicate())
        assert second.returncode == 2
        assert b"in use by another worker" in said
