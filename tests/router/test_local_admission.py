"""A router that loses quota: who goes on, how far, and what quota hears of it, whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.errors import Code, MeshError
from forebay.journal import Journal
from forebay.lifecycle import background
from forebay.router.domain.decisions import Settlement
from forebay.router.domain.events import Usage
from forebay.router.domain.local_share import WINDOW_S
from forebay.router.local_admission import LocalAdmission
from forebay.router.quota_link import RETRY_EVERY_S, QuotaLink
from forebay.router.request import LiveRequests, Request
from forebay.rpc.client import connect
from forebay.rpc.status import to_pb_duration
from forebay.testing.clock import FakeClock

from .peers import FakeQuota, soon
from .samples import request

LEASE_S = 300.0
SETTLEMENT = Settlement(True, Usage(3, 0, 2), 0.0)


class World:
    """A router's link to a quota that tells it what it may admit: two requests of acme in any minute."""

    def __init__(self, clock: FakeClock, folder: Path) -> None:
        self.fake = FakeQuota()
        self.live: LiveRequests = {}
        self.clock = clock
        self.path = folder / "journal"
        self.lives = 0
        self.stack = AsyncExitStack()

    async def live_on(self, wait_s: float = 5.0) -> None:
        """Begins the router's next life; the one before has died without a word."""
        await self.stack.aclose()
        self.lives += 1
        router = common_pb2.Peer(id="router-1", incarnation=self.lives)
        self.journal = Journal(self.path)
        self.local = LocalAdmission(self.journal, router, self.clock)
        channel = connect(self.fake.server.address, caller="router-1")
        self.stack.push_async_callback(channel.close)
        self.link = QuotaLink(channel, router, self.live, self.clock, wait_s=wait_s, local=self.local)
        await self.stack.enter_async_context(background(self.link.keep_alive(), "leases"))
        await self.stack.enter_async_context(background(self.link.session.run(), "quota"))

    async def told(self, number: int = 1) -> None:
        """Quota tells the router its part, and the router takes it up."""
        await soon(self.link.session.wait_connected())
        share = quota_pb2.LocalShare(number=number, parts=3, holds_for=to_pb_duration(LEASE_S))
        share.allowances.add(tenant_id="acme").limits.add(subject="tenant:acme", limit="requests_per_minute", value=2)
        assert self.fake.outbox is not None
        self.fake.outbox.message.local_share.CopyFrom(share)
        self.fake.outbox.flush()
        while (held := await soon(self.fake.held.get())).number != number:
            pass
        assert held.parts == 3

    async def cut_off(self) -> None:
        await self.fake.server.kill()
        async with asyncio.timeout(60):
            while self.link.session.connected:
                await asyncio.sleep(0)

    async def back(self) -> None:
        await self.fake.server.start()
        await soon(self.link.session.wait_connected())

    async def admitted(self, count: int) -> list[Request]:
        """Returns those of so many requests that are admitted."""
        found = []
        for _ in range(count):
            live = request(deadline_at=self.clock.monotonic() + 600)
            try:
                await soon(self.link.reserve(live))
            except MeshError as error:
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    raise
            else:
                found.append(live)
        return found

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / RETRY_EVERY_S)):
            self.clock.advance(RETRY_EVERY_S)
            await asyncio.sleep(0)


@pytest.fixture
async def world(clock: FakeClock, tmp_path: Path) -> AsyncIterator[World]:
    world = World(clock, tmp_path)
    await world.fake.server.start()
    yield world
    await world.stack.aclose()
    await world.fake.server.kill()


async def test_who_fails_open_goes_on_to_the_bound(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    assert len(await world.admitted(4)) == 2
    await world.pass_time(WINDOW_S)
    assert len(await world.admitted(4)) == 2


async def test_a_request_that_waits_while_quota_dies_goes_on(world: World) -> None:
    await world.live_on()
    await world.told()
    world.fake.silent = True
    waiting = asyncio.create_task(world.link.reserve(request()))
    await soon(world.fake.reserves.get())
    await world.fake.server.kill()
    await soon(waiting)


async def test_a_quota_that_only_hangs_is_away_after_the_wait(world: World) -> None:
    await world.live_on(wait_s=0.01)
    await world.told()
    world.fake.silent = True
    assert len(await world.admitted(3)) == 2


async def test_a_request_in_a_hurry_says_nothing_of_quota(world: World) -> None:
    await world.live_on()
    await world.told()
    world.fake.silent = True
    with pytest.raises(MeshError) as caught:
        await soon(world.link.reserve(request(deadline_at=world.clock.monotonic() + 0.01)))
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert not world.local.owed


async def test_without_a_word_from_quota_or_long_after_it_nobody_is_admitted(world: World) -> None:
    await world.live_on(wait_s=0.01)
    await soon(world.link.session.wait_connected())
    await world.cut_off()
    for _ in range(2):
        with pytest.raises(MeshError) as caught:
            await soon(world.link.reserve(request()))
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "QUOTA_UNAVAILABLE")
        await world.back()
        await world.told()
        await world.cut_off()
        world.clock.advance(LEASE_S)


async def test_what_was_admitted_is_charged_and_settled_once_quota_is_back(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    over, runs = await world.admitted(2)
    world.link.settle(over, SETTLEMENT)
    world.live[runs.id] = runs
    await world.back()
    charged = [await soon(world.fake.reserves.get()) for _ in range(2)]
    assert {each.request_id for each in charged} == {over.id, runs.id}
    assert all(each.HasField("admitted_at") and each.router.incarnation == 1 for each in charged)
    settled = await soon(world.fake.settles.get())
    assert (settled.request_id, settled.completion_tokens) == (over.id, 2)
    async with asyncio.timeout(60):
        while world.local.owed:
            await asyncio.sleep(0)
    world.link.settle(runs, SETTLEMENT)
    assert (await soon(world.fake.settles.get())).request_id == runs.id
    await soon(world.link.all_settled())
    assert world.fake.reserves.empty()


async def test_a_lease_that_quota_does_not_know_of_yet_is_not_renewed(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    (runs,) = await world.admitted(1)
    world.live[runs.id] = runs
    world.fake.silent = True
    await world.back()
    await soon(world.fake.reserves.get())
    await world.pass_time(30)
    assert world.fake.renewals.empty()


async def test_a_charge_that_quota_cannot_make_is_asked_for_again(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    await world.admitted(1)
    world.fake.refusal = MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "later")
    await world.back()
    first = await soon(world.fake.reserves.get())
    world.fake.refusal = None
    async with asyncio.timeout(60):
        while world.fake.reserves.empty():
            world.clock.advance(RETRY_EVERY_S)
            await asyncio.sleep(0)
    assert await soon(world.fake.reserves.get()) == first


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_next_life_says_what_the_one_before_owed(world: World, dies: str) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    over, runs = await world.admitted(2)
    world.link.settle(over, SETTLEMENT)
    await world.journal.synced()
    if dies == "after":
        await world.back()
        async with asyncio.timeout(60):
            while world.local.owed:
                await asyncio.sleep(0)
        await world.journal.synced()
        for queue in (world.fake.reserves, world.fake.settles, world.fake.held):
            while not queue.empty():
                queue.get_nowait()
    await world.live_on()
    if dies == "before":
        await world.back()
        charged = [await soon(world.fake.reserves.get()) for _ in range(2)]
        assert {(each.request_id, each.router.incarnation) for each in charged} == {(over.id, 1), (runs.id, 1)}
        assert (await soon(world.fake.settles.get())).request_id == over.id
    held = await soon(world.fake.held.get())
    assert (held.parts, held.HasField("admitted_ago")) == (0, True)
    await world.told()
    await world.cut_off()
    assert await world.admitted(1) == [], "what the life before admitted counts"
    assert world.fake.reserves.empty()


async def test_the_journal_is_empty_once_nothing_of_it_counts(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    (over,) = await world.admitted(1)
    world.link.settle(over, SETTLEMENT)
    await world.back()
    async with asyncio.timeout(60):
        while world.local.owed:
            await asyncio.sleep(0)
    await world.pass_time(WINDOW_S + 2)
    await world.journal.synced()
    assert world.path.read_bytes() == b""


async def test_who_leaves_while_the_disk_is_slow_is_charged_nothing(world: World) -> None:
    await world.live_on()
    await world.told()
    await world.cut_off()
    leaving = asyncio.create_task(world.link.reserve(request()))
    async with asyncio.timeout(60):
        while not world.local.owed:
            await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await world.pass_time(RETRY_EVERY_S)
    await world.back()
    await soon(world.fake.reserves.get())
    assert not (await soon(world.fake.settles.get())).started
