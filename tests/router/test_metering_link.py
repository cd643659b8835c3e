"""Reports on their way to metering: kept until acknowledged, within bounds, whatever the session does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.lifecycle import background
from forebay.router.domain.decisions import Outcome, Report
from forebay.router.domain.events import Grant
from forebay.router.metering_link import GATHER_S, MeteringLink
from forebay.rpc.client import connect
from forebay.testing.clock import FakeClock

from .peers import FakeMetering, soon
from .samples import HELLO_IDS, request

ROUTER = common_pb2.Peer(id="router-1", incarnation=1)


def lost(attempt: int = 1, completion_from: int = 0, completion_to: int = 3, *, continued: bool = False) -> Report:
    grant = Grant(attempt, "w1", 7, "w1", 0.0, 4096, b"")
    return Report(grant, Outcome.LOST, continued, completion_from, completion_to)


def completed() -> Report:
    grant = Grant(1, "w1", 7, "w1", 0.0, 4096, b"")
    return Report(grant, Outcome.COMPLETED, False, 0, 3, cached_tokens=2, gpu_time_s=0.5, confirmed=True)


class World:
    def __init__(self, clock: FakeClock, stack: AsyncExitStack) -> None:
        self.fake = FakeMetering()
        self.clock = clock
        self._stack = stack

    async def start(self, max_reports: int = 100) -> None:
        await self.fake.server.start()
        self._stack.push_async_callback(self.fake.server.kill)
        channel = connect(self.fake.server.address, caller="router-1")
        self._stack.push_async_callback(channel.close)
        self.link = MeteringLink(channel, ROUTER, self.clock, max_reports)

    async def connect(self) -> None:
        await self._stack.enter_async_context(background(self.link.session.run(), "metering"))
        await soon(self.link.session.wait_connected())

    async def event(self) -> metering_pb2.UsageEvent:
        return await soon(self.fake.events.get())


@pytest.fixture
async def world(clock: FakeClock) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(clock, stack)


async def test_an_event_says_what_was_seen(world: World) -> None:
    await world.start()
    await world.connect()
    live = request()
    live.payload = replace(live.payload, adapter="support")
    live.granted_at, live.first_output_at = 2.0, 2.5
    world.clock.advance(4.0)
    world.link.report(live, completed())
    world.link.report(live, lost(2, 3, 5, continued=True))
    first, second = await world.event(), await world.event()
    assert (first.request_id, first.attempt, first.source) == (live.id, 1, metering_pb2.EVENT_SOURCE_ROUTER)
    assert (first.tenant_id, first.key_id, first.plan) == ("acme", live.caller.key.key_id, "enterprise")
    assert (first.service_class, first.model, first.worker.id, first.worker.incarnation) == ("gold", "tiny", "w1", 7)
    assert first.adapter == "support"
    assert (first.prompt_tokens, first.cached_tokens, first.gpu_time.nanos) == (len(HELLO_IDS), 2, 500_000_000)
    assert (first.completion_from, first.completion_to, first.outcome) == (0, 3, metering_pb2.OUTCOME_COMPLETED)
    assert (first.queue_time.seconds, first.time_to_first_token.nanos) == (2, 500_000_000)
    assert first.finished_at.seconds - first.started_at.seconds == 2
    assert not first.recomputed_tokens
    assert (second.attempt, second.completion_from, second.completion_to) == (2, 3, 5)
    assert second.recomputed_tokens == len(HELLO_IDS) + 3
    assert not second.HasField("time_to_first_token")
    await soon(world.link.all_recorded())


async def test_what_the_worker_confirmed_gathers_and_the_rest_leaves_at_once(world: World) -> None:
    await world.start()
    await world.connect()
    async with background(world.link.gather(), "gather"):
        world.link.report(request(), completed())
        await asyncio.sleep(0)
        world.link.received(metering_pb2.RecordResponse())  # as metering says of the hello, whenever that comes
        assert world.link.session.outbox is not None
        assert not world.link.session.outbox.message.events
        world.clock.advance(GATHER_S)
        assert (await world.event()).outcome == metering_pb2.OUTCOME_COMPLETED
        world.link.report(request(), lost())
        assert (await world.event()).outcome == metering_pb2.OUTCOME_LOST
    await soon(world.link.all_recorded())


async def test_what_is_not_acknowledged_is_sent_again(world: World) -> None:
    await world.start()
    world.fake.acknowledges = False
    await world.connect()
    reports = [request() for _ in range(3)]
    for live in reports:
        world.link.report(live, lost())
    first = [(await world.event()).request_id for _ in reports]
    await world.fake.server.kill()
    world.fake.acknowledges = True
    await world.fake.server.start()
    await soon(world.link.all_recorded())
    assert first == [(await world.event()).request_id for _ in reports] == [live.id for live in reports]
    assert world.fake.events.empty()


async def test_reports_wait_in_a_bounded_queue(world: World) -> None:
    await world.start(max_reports=3)
    reports = [request() for _ in range(5)]
    for live in reports:
        world.link.report(live, lost())
    assert world.link.dropped == 2
    await world.connect()
    await soon(world.link.all_recorded())
    assert [(await world.event()).request_id for _ in range(3)] == [live.id for live in reports[2:]], (
        "the oldest are gone"
    )


async def test_one_that_is_dropped_under_way_does_not_confuse_the_count(world: World) -> None:
    await world.start(max_reports=2)
    world.fake.acknowledges = False
    await world.connect()
    for _ in range(3):
        world.link.report(request(), lost())
        await world.event()
    world.fake.acknowledges = True
    world.link.report(request(), lost())
    await soon(world.link.all_recorded())
    assert world.link.dropped == 2


async def test_no_more_is_under_way_than_metering_allows(world: World) -> None:
    await world.start()
    world.fake.window = 2
    world.fake.acknowledges = False
    for _ in range(5):
        world.link.report(request(), lost())
    await world.connect()
    for _ in range(2):
        await world.event()
    assert world.fake.events.empty()
    await world.fake.server.kill()
    world.fake.acknowledges = True
    await world.fake.server.start()
    await soon(world.link.all_recorded())
    assert world.fake.events.qsize() == 5
