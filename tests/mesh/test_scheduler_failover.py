"""The leading scheduler of two dies, now and then or at a kill point: streams go on, what waits is served, nothing runs twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from forebay.client import ForebayClient, UsageEntry
from forebay.killpoints import POINTS, VARIABLE
from forebay.testing.processes import MeshProcesses

from .test_kills import restarted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scheduler failover")]

# Two at a time on each worker: of eight streams half run and half wait.
ENVIRONMENT = {
    "FOREBAY_WORKER_SIMULATED__MAX_NUM_SEQS": "2",
    "FOREBAY_WORKER_SIMULATED__SPEED": "8",
    "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "0",
}
CLIENTS = 8
TOKENS = 200
KILLS = 2


class Load:
    """Clients that ask again and again; each request must be answered whole by one stream.

    Attributes:
        request_ids: of what was answered.
        stopping: whether no more is asked.
    """

    def __init__(self, client: ForebayClient) -> None:
        self.request_ids: list[str] = []
        self.stopping = False
        self._client = client
        self._round = 0
        self._served: Counter[int] = Counter()

    async def ask_on(self) -> None:
        """One client, until `stopping`."""
        while not self.stopping:
            asked_in = self._round
            stream = self._client.stream("Who leads?", max_tokens=TOKENS, ignore_eos=True)
            received = 0
            async for delta in stream:
                assert delta.position == received
                received += len(delta.token_ids)
            assert stream.started is not None
            assert stream.finished is not None
            assert received == stream.finished.usage.completion == TOKENS
            self.request_ids.append(stream.started.request_id)
            self._served[asked_in] += 1

    async def next_round(self) -> None:
        """Returns once so many requests that were asked from now on are answered as there are clients."""
        self._round += 1
        async with asyncio.timeout(60):
            while self._served[self._round] < CLIENTS:
                await asyncio.sleep(0.02)


async def test_a_leader_that_dies_is_replaced_and_nobody_notices(tmp_path: Path) -> None:
    points = tmp_path / "points"
    points.mkdir()
    order = [None] * KILLS + [point for point in POINTS if point.startswith("scheduler.")]
    random.Random(5).shuffle(order)
    with MeshProcesses(
        tmp_path / "data", schedulers=2, workers=2, environment=ENVIRONMENT | {VARIABLE: str(points)}
    ) as mesh:
        async with (
            ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=120) as client,
            asyncio.TaskGroup() as group,
        ):
            load = Load(client)
            for _ in range(CLIENTS):
                group.create_task(load.ask_on())
            await load.next_round()
            for point in order:
                await die(mesh, points, point)
                await load.next_round()
            load.stopping = True
        async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
            rows = await ledger(client, load.request_ids)
    assert len(load.request_ids) >= CLIENTS * len(order)
    assert set(Counter(row.request_id for row in rows).values()) == {1}, "no worker died, so a request ran once"
    assert {row.completion_tokens for row in rows} == {TOKENS}
    leaders = "".join(log.read_text() for log in (tmp_path / "data" / "logs").glob("scheduler-*"))
    assert leaders.count('"event": "leads"') > len(order)


async def test_a_leader_that_hangs_is_left_for_the_next(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "data", schedulers=2, environment=ENVIRONMENT) as mesh:
        # A connection that nobody looks after would end after 20 s.
        async with ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=15) as client:
            await client.generate("Who leads?", max_tokens=2)
            leader = await mesh.leading_scheduler()
            os.kill(mesh.pid(leader), signal.SIGSTOP)
            try:
                await client.generate("And now?", max_tokens=2)
                assert await mesh.leading_scheduler() != leader
            finally:
                os.kill(mesh.pid(leader), signal.SIGCONT)
            await client.generate("And after it woke?", max_tokens=2)
            assert await mesh.leading_scheduler() != leader


async def die(mesh: MeshProcesses, points: Path, point: str | None) -> None:
    """Has the leader die, by kill -9 from outside, or at a point; of two that are in an election both, one after the other."""
    leader = await mesh.leading_scheduler()
    dies = {name: mesh.pid(name) for name in ("scheduler-1", "scheduler-2")}
    if point is not None:
        (points / point).touch()
    if point in (None, "scheduler.after_lease", "scheduler.during_takeover"):
        mesh.kill(leader)
        await restarted(mesh, leader, dies[leader])
    async with asyncio.timeout(60):
        while point is not None and (points / point).exists():
            await asyncio.sleep(0.02)
        while not mesh.state()["ready"]:
            await asyncio.sleep(0.02)


async def ledger(client: ForebayClient, request_ids: list[str]) -> list[UsageEntry]:
    """Returns the rows of requests, once each has one."""
    rows: list[UsageEntry] = []
    async with asyncio.timeout(60):
        async for page in client.usage(follow=True):
            rows += [row for row in page.entries if row.request_id in set(request_ids)]
            if {row.request_id for row in rows} == set(request_ids):
                return rows
    raise AssertionError("the usage stream ended")
