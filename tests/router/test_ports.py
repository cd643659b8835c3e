"""The ports to quota, scheduler and workers: each test runs on the in-memory twin and on the link to a fake over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.clock import SystemClock
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.router.delivery import Delivery
from forebay.router.domain.decisions import Cancel, End, Outcome, Report, Settlement, Start, Submit, Withdraw
from forebay.router.domain.events import FinishReason, Grant, Granted, Reserved, Usage
from forebay.router.domain.life import State
from forebay.router.quota import MemoryQuota, Quota
from forebay.router.quota_link import QuotaLink
from forebay.router.request import LiveRequests, Request, client_gone
from forebay.router.scheduler import MemoryScheduler, Scheduler
from forebay.router.scheduler_link import SchedulerLink
from forebay.router.worker_link import WorkerLinks
from forebay.router.workers import MemoryWorkers, Workers
from forebay.rpc.client import connect
from forebay.rpc.leader import LeaderChannel

from .peers import FakeQuota, FakeScheduler, FakeWorker, soon
from .samples import request

ROUTER = common_pb2.Peer(id="router-1", incarnation=1)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connected(stack: AsyncExitStack, fake: Any) -> Any:
    await fake.server.start()
    stack.push_async_callback(fake.server.kill)
    channel = connect(fake.server.address, caller="router-1")
    stack.push_async_callback(channel.close)
    return channel


# Quota.


class MemoryQuotaCase:
    def __init__(self) -> None:
        self.port: Quota = MemoryQuota()

    def refuse(self, error: MeshError) -> None:
        assert isinstance(self.port, MemoryQuota)
        self.port.refusal = error

    async def settled(self) -> tuple[bool, int]:
        assert isinstance(self.port, MemoryQuota)
        ((_, settlement),) = self.port.settled.items()
        return settlement.started, settlement.usage.completion_tokens


class QuotaLinkCase:
    def __init__(self, link: QuotaLink, fake: FakeQuota) -> None:
        self.port: Quota = link
        self.fake = fake

    def refuse(self, error: MeshError) -> None:
        self.fake.refusal = error

    async def settled(self) -> tuple[bool, int]:
        settle = await soon(self.fake.settles.get())
        return settle.started, settle.completion_tokens


@pytest.fixture(params=["memory", "link"])
async def quota(request: pytest.FixtureRequest, stack: AsyncExitStack) -> MemoryQuotaCase | QuotaLinkCase:
    if request.param == "memory":
        return MemoryQuotaCase()
    fake = FakeQuota()
    link = QuotaLink(await connected(stack, fake), ROUTER, {}, SystemClock(), wait_s=5)
    await stack.enter_async_context(background(link.session.run(), "quota"))
    return QuotaLinkCase(link, fake)


async def test_what_is_reserved_is_settled(quota: MemoryQuotaCase | QuotaLinkCase) -> None:
    live = request(now=SystemClock().monotonic(), deadline_at=SystemClock().monotonic() + 10)
    reservation = await soon(quota.port.reserve(live))
    assert reservation.start_after_s == 0
    quota.port.settle(live, Settlement(True, Usage(3, 0, 2), 0.1))
    assert await quota.settled() == (True, 2)


async def test_what_has_no_room_is_refused(quota: MemoryQuotaCase | QuotaLinkCase) -> None:
    quota.refuse(MeshError(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "no room"))
    live = request(now=SystemClock().monotonic(), deadline_at=SystemClock().monotonic() + 10)
    with pytest.raises(MeshError, match="QUOTA_EXCEEDED"):
        await soon(quota.port.reserve(live))


# The scheduler.


class MemorySchedulerCase:
    def __init__(self) -> None:
        self.twin = MemoryScheduler("w1", "w2")
        self.port: Scheduler = self.twin
        self.live: LiveRequests = {}

    async def heard(self, what: str) -> tuple[str, int]:
        return next((request_id, attempt) for kind, request_id, attempt in self.twin.log if kind == what)


class SchedulerLinkCase:
    def __init__(self, link: SchedulerLink, fake: FakeScheduler, live: LiveRequests) -> None:
        self.port: Scheduler = link
        self.fake = fake
        self.live = live

    async def heard(self, what: str) -> tuple[str, int]:
        queue = {"withdraw": self.fake.cancellations, "decline": self.fake.declines}[what]
        ref = await soon(queue.get())
        return ref.request_id, ref.attempt


@pytest.fixture(params=["memory", "link"])
async def scheduler(request: pytest.FixtureRequest, stack: AsyncExitStack) -> MemorySchedulerCase | SchedulerLinkCase:
    if request.param == "memory":
        return MemorySchedulerCase()
    workers = [FakeWorker("w1"), FakeWorker("w2")]
    fake, live = FakeScheduler(*workers), LiveRequests()
    channel = await connected(stack, fake)
    schedulers = LeaderChannel([fake.server.address], lambda address: channel)
    link = SchedulerLink(schedulers, ROUTER, live, SystemClock(), wait_s=5)
    await stack.enter_async_context(background(link.session.run(), "scheduler"))
    await soon(link.session.wait_connected())
    return SchedulerLinkCase(link, fake, live)


async def test_what_is_submitted_is_granted_where_it_may_run(
    scheduler: MemorySchedulerCase | SchedulerLinkCase,
) -> None:
    live = request()
    scheduler.live[live.id] = live
    live.tell(Reserved())
    assert await soon(live.decisions.get()) == Submit(1)
    live.life.excluded = "w1"
    scheduler.port.submit(live)
    start = await soon(live.decisions.get())
    assert isinstance(start, Start)
    assert (start.grant.attempt, start.grant.worker_id, live.life.state) == (1, "w2", State.GRANTED)


async def test_the_scheduler_hears_what_is_not_wanted(scheduler: MemorySchedulerCase | SchedulerLinkCase) -> None:
    scheduler.port.withdraw("a" * 32, 1)
    scheduler.port.decline("b" * 32, 2)
    assert await scheduler.heard("withdraw") == ("a" * 32, 1)
    assert await scheduler.heard("decline") == ("b" * 32, 2)


# Workers.


class MemoryWorkersCase:
    def __init__(self, delivery: Delivery) -> None:
        self.twin = MemoryWorkers(delivery)
        self.port: Workers = self.twin
        self.address = "w1"

    async def say(self, live: Request, tokens: list[int]) -> None:
        self.twin.yield_tokens(live.id, tokens)

    async def finish(self, live: Request, tokens: int, reason: FinishReason) -> None:
        self.twin.finish(live.id, reason)

    async def cancelled(self, live: Request, tokens: int) -> None:
        """The twin ends a cancelled attempt by itself."""

    async def break_off(self) -> None:
        self.twin.break_off("w1")


class WorkerLinksCase:
    def __init__(self, links: WorkerLinks, fake: FakeWorker) -> None:
        self.port: Workers = links
        self.fake = fake
        self.address = fake.server.address

    async def say(self, live: Request, tokens: list[int]) -> None:
        self.start = await soon(self.fake.starts.get())
        self.fake.say(self.start.ref, live.tokens.received, tokens, "x" * len(tokens))

    async def finish(self, live: Request, tokens: int, reason: FinishReason) -> None:
        self.fake.finish(self.start, tokens, common_pb2.FinishReason.ValueType(reason.value))

    async def cancelled(self, live: Request, tokens: int) -> None:
        await soon(self.fake.cancels.get())
        self.fake.finish(self.start, tokens, common_pb2.FINISH_REASON_CANCELLED)

    async def break_off(self) -> None:
        await self.fake.server.kill()


@pytest.fixture(params=["memory", "link"])
async def workers(request: pytest.FixtureRequest, stack: AsyncExitStack) -> MemoryWorkersCase | WorkerLinksCase:
    delivery = Delivery(SystemClock())
    await stack.enter_async_context(background(delivery.run(), "delivery"))
    if request.param == "memory":
        return MemoryWorkersCase(delivery)
    fake = FakeWorker("w1")
    await connected(stack, fake)
    links = WorkerLinks(ROUTER, delivery, SystemClock())
    await stack.enter_async_context(background(links.run(), "workers"))
    return WorkerLinksCase(links, fake)


async def running(workers: MemoryWorkersCase | WorkerLinksCase) -> Request:
    """Returns a request that has yielded three tokens."""
    live = request()
    live.tell(Reserved())
    await live.decisions.get()
    grant = Grant(1, "w1", 1, workers.address, 0.0, 4096, b"")
    live.tell(Granted(grant))
    await live.decisions.get()
    workers.port.start(live, grant)
    await workers.say(live, [1, 2, 3])
    async with asyncio.timeout(60):
        while live.life.state is not State.RUNNING:
            await asyncio.sleep(0)
    return live


async def test_a_payload_yields_tokens_and_ends(workers: MemoryWorkersCase | WorkerLinksCase) -> None:
    live = await running(workers)
    assert live.tokens.token_ids == [1, 2, 3]
    assert live.first_output_at is not None
    await workers.finish(live, 3, FinishReason.LENGTH)
    assert isinstance(await soon(live.decisions.get()), Report)
    assert await soon(live.decisions.get()) == End(FinishReason.LENGTH)
    assert live.life.settlement().usage.completion_tokens == 3


async def test_a_cancel_is_answered_with_the_usage(workers: MemoryWorkersCase | WorkerLinksCase) -> None:
    live = await running(workers)
    live.tell(client_gone())
    assert await soon(live.decisions.get()) == Cancel(FinishReason.CANCELLED)
    workers.port.cancel(live, FinishReason.CANCELLED)
    await workers.cancelled(live, 3)
    report = await soon(live.decisions.get())
    assert isinstance(report, Report)
    assert (report.outcome, report.completion_to) == (Outcome.CANCELLED, 3)
    assert isinstance(await soon(live.decisions.get()), End)
    assert live.life.settlement().usage.completion_tokens == 3


async def test_a_broken_session_is_told_to_its_requests(workers: MemoryWorkersCase | WorkerLinksCase) -> None:
    live = await running(workers)
    await workers.break_off()
    assert await soon(live.decisions.get()) == Withdraw(1)
    assert await soon(live.decisions.get()) == Report(
        Grant(1, "w1", 1, workers.address, 0.0, 4096, b""), Outcome.LOST, False, 0, 3
    )
    assert await soon(live.decisions.get()) == Submit(2)


async def test_what_is_forgotten_yields_no_more(workers: MemoryWorkersCase | WorkerLinksCase) -> None:
    live = await running(workers)
    workers.port.forget(live)
    await workers.break_off()
    assert live.decisions.empty()
