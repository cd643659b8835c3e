"""What the links do beyond their ports: renewals, repeats, bounds, and peers that are away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.config import ConfigError, TlsConfig
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.router.config import RouterConfig
from forebay.router.delivery import Delivery
from forebay.router.domain.decisions import End, Settlement, Start, Submit
from forebay.router.domain.events import FinishReason, Grant, Granted, Reserved, Usage
from forebay.router.quota_link import DEFAULT_LEASE_S, RENEWALS_PER_LEASE, RETRY_EVERY_S, QuotaLink
from forebay.router.request import LiveRequests, Request, client_gone
from forebay.router.scheduler_link import SchedulerLink
from forebay.router.worker_link import WorkerLinks
from forebay.rpc.client import connect
from forebay.rpc.leader import LeaderChannel
from forebay.testing.clock import FakeClock

from .peers import FakeQuota, FakeScheduler, FakeWorker, soon
from .samples import ask, request

ROUTER = common_pb2.Peer(id="router-1", incarnation=1)
SETTLEMENT = Settlement(True, Usage(3, 0, 2), 0.0)


async def until(clock: FakeClock, seconds: float, queue: asyncio.Queue[object]) -> None:
    """Moves the clock until something is in the queue."""
    async with asyncio.timeout(60):
        while queue.empty():
            clock.advance(seconds)
            await asyncio.sleep(0)


class QuotaWorld:
    def __init__(self, clock: FakeClock, stack: AsyncExitStack) -> None:
        self.fake = FakeQuota()
        self.live: LiveRequests = {}
        self._clock = clock
        self._stack = stack

    async def start(self, max_unsettled: int = 100) -> None:
        await self.fake.server.start()
        self._stack.push_async_callback(self.fake.server.kill)
        channel = connect(self.fake.server.address, caller="router-1")
        self._stack.push_async_callback(channel.close)
        self.link = QuotaLink(channel, ROUTER, self.live, self._clock, wait_s=5, max_unsettled=max_unsettled)
        await self._stack.enter_async_context(background(self.link.keep_alive(), "leases"))

    async def connect(self) -> None:
        await self._stack.enter_async_context(background(self.link.session.run(), "quota"))
        await soon(self.link.session.wait_connected())


@pytest.fixture
async def quota(clock: FakeClock) -> AsyncIterator[QuotaWorld]:
    async with AsyncExitStack() as stack:
        yield QuotaWorld(clock, stack)


async def test_all_leases_are_renewed_every_ten_seconds(quota: QuotaWorld, clock: FakeClock) -> None:
    await quota.start()
    await quota.connect()
    requests = [request() for _ in range(3)]
    for live in requests:
        live.tell(Reserved())
        live.tokens.append([1, 2], "ab", "", 2)
        quota.live[live.id] = live
    await until(clock, 1.0, quota.fake.renewals)
    assert clock.monotonic() >= DEFAULT_LEASE_S / RENEWALS_PER_LEASE
    leases = [await soon(quota.fake.renewals.get()) for _ in requests]
    assert [lease.request_id for lease in leases] == [live.id for live in requests]
    assert {(lease.tenant_id, lease.completion_tokens) for lease in leases} == {("acme", 2)}


async def test_leases_and_settlements_say_what_is_held(quota: QuotaWorld, clock: FakeClock) -> None:
    live = request(now=clock.monotonic())
    reserved_at = clock.now()
    quota.live[live.id] = live
    clock.advance(7)
    await quota.start()
    await quota.connect()
    lease = await soon(quota.fake.renewals.get())  # as the session begins
    quota.link.settle(live, SETTLEMENT)
    settle = await soon(quota.fake.settles.get())
    assert lease.hold == settle.hold
    hold, payload = lease.hold, live.payload
    assert (hold.key_id, hold.model) == (live.caller.key.key_id, payload.model)
    assert (hold.prompt_tokens, hold.max_completion_tokens) == (len(payload.prompt_token_ids), payload.max_tokens)
    assert hold.reserved_at.ToMilliseconds() == reserved_at * 1000


async def test_a_lost_lease_and_a_spent_budget_end_their_requests(quota: QuotaWorld) -> None:
    await quota.start()
    await quota.connect()
    lost, spent = request(), request()
    for live in (lost, spent):
        live.tell(Reserved())
        quota.live[live.id] = live
    outbox = quota.fake.outbox
    assert outbox is not None
    outbox.message.renewals.CopyFrom(quota_pb2.RenewResponse(lost=[lost.id, "f" * 32], stop=[spent.id]))
    outbox.flush()
    ends = {}
    for live in (lost, spent):
        async with asyncio.timeout(60):
            while not isinstance(end := await live.decisions.get(), End):
                pass
        ends[live.id] = end
    assert ends[lost.id].error is not None
    assert ends[lost.id].error.reason == "LEASE_LOST"
    assert (ends[spent.id].reason, ends[spent.id].error) == (FinishReason.BUDGET, None)


async def test_a_settlement_that_quota_could_not_make_is_repeated(quota: QuotaWorld, clock: FakeClock) -> None:
    await quota.start()
    await quota.connect()
    quota.fake.settle_error = MeshError(Code.UNAVAILABLE, "COUNTERS_UNREACHABLE", "later")
    live = request()
    quota.link.settle(live, SETTLEMENT)
    first = await soon(quota.fake.settles.get())
    quota.fake.settle_error = None
    await until(clock, RETRY_EVERY_S, quota.fake.settles)
    assert await soon(quota.fake.settles.get()) == first
    await soon(quota.link.all_settled())


async def test_a_settlement_that_quota_will_never_make_is_not_repeated(quota: QuotaWorld) -> None:
    await quota.start()
    await quota.connect()
    quota.fake.settle_error = MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", "no")
    quota.link.settle(request(), SETTLEMENT)
    await soon(quota.fake.settles.get())
    await soon(quota.link.all_settled())


async def test_settlements_wait_for_quota_in_a_bounded_queue(quota: QuotaWorld) -> None:
    await quota.start(max_unsettled=3)
    requests = [request() for _ in range(5)]
    for live in requests:
        quota.link.settle(live, SETTLEMENT)
    assert quota.link.dropped == 2
    await quota.connect()
    settled = [(await soon(quota.fake.settles.get())).request_id for _ in range(3)]
    assert settled == [live.id for live in requests[2:]], "the oldest were dropped"
    await soon(quota.link.all_settled())
    assert quota.fake.settles.empty()


async def test_a_reservation_nobody_waits_for_any_more_is_given_back(quota: QuotaWorld) -> None:
    await quota.start()
    await quota.connect()
    quota.fake.silent = True
    task = asyncio.create_task(quota.link.reserve(request()))
    asked = await soon(quota.fake.reserves.get())
    task.cancel()
    settle = await soon(quota.fake.settles.get())
    assert (settle.request_id, settle.tenant_id, settle.started) == (asked.request_id, "acme", False)


async def test_a_request_out_of_time_does_not_blame_quota(quota: QuotaWorld) -> None:
    await quota.start()
    await quota.connect()
    quota.fake.silent = True
    with pytest.raises(MeshError) as caught:
        await quota.link.reserve(request(deadline_at=0.01))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    asked, settle = await soon(quota.fake.reserves.get()), await soon(quota.fake.settles.get())
    assert (settle.request_id, settle.started) == (asked.request_id, False)


async def test_a_reservation_is_asked_for_again_on_the_next_session(quota: QuotaWorld) -> None:
    await quota.start()
    await quota.connect()
    quota.fake.silent = True
    task = asyncio.create_task(quota.link.reserve(request()))
    first = await soon(quota.fake.reserves.get())
    await quota.fake.server.kill()
    quota.fake.silent = False
    await quota.fake.server.start()
    await soon(task)
    assert await soon(quota.fake.reserves.get()) == first


async def test_a_queued_request_waits_for_an_absent_scheduler_within_a_bound(clock: FakeClock) -> None:
    live: LiveRequests = {}
    link = SchedulerLink(LeaderChannel(["127.0.0.1:1"], grpc.aio.insecure_channel), ROUTER, live, clock, wait_s=5)
    async with background(link.watch(), "watch"):
        queued = request()
        live[queued.id] = queued
        queued.tell(Reserved())
        assert await queued.decisions.get() == Submit(1)
        link.submit(queued)
        await asyncio.sleep(0)
        for _ in range(4):
            clock.advance(1)
            await asyncio.sleep(0)
        assert queued.decisions.empty()
        clock.advance(1)
        end = await soon(queued.decisions.get())
    assert isinstance(end, End)
    assert end.error is not None
    assert (end.error.code, end.error.reason) == (Code.UNAVAILABLE, "SCHEDULER_UNAVAILABLE")
    assert clock.monotonic() == 5


async def test_the_link_finds_the_leader_and_the_next_one(clock: FakeClock) -> None:
    follower, leader, live = FakeScheduler(), FakeScheduler(), LiveRequests()
    for fake in (follower, leader):
        await fake.server.start()
    follower.leader = leader.server.address
    schedulers = LeaderChannel([follower.server.address], grpc.aio.insecure_channel)
    link = SchedulerLink(schedulers, ROUTER, live, clock, wait_s=5)
    queued = request()
    live[queued.id] = queued
    queued.tell(Reserved())
    async with background(link.session.run(), "scheduler"):
        for fake in (leader, follower):
            assert (await soon(fake.hellos.get())).held_complete
            assert (schedulers.address, link.session.connected) == (fake.server.address, True)
            assert (await soon(fake.submissions.get())).ref.request_id == queued.id
            follower.leader = ""
            await fake.server.kill()
    await schedulers.close()


async def test_a_client_that_would_queue_for_ever_is_queued_up_to_its_deadline(clock: FakeClock) -> None:
    fake, live = FakeScheduler(), LiveRequests()
    await fake.server.start()
    schedulers = LeaderChannel([fake.server.address], grpc.aio.insecure_channel)
    link = SchedulerLink(schedulers, ROUTER, live, clock, wait_s=5)
    queued = request(deadline_at=600.0)
    queued.ask = ask(queue_timeout_s=float(2**63))  # the longest that the contract's message can say, and a little more
    live[queued.id] = queued
    queued.tell(Reserved())
    async with background(link.session.run(), "scheduler"):
        assert (await soon(fake.submissions.get())).queue_timeout.seconds == 600
    await fake.server.kill()
    await schedulers.close()


async def granted(links: WorkerLinks, fake: FakeWorker) -> Request:
    """Returns a request that was sent to a worker under a grant for its first life."""
    live = request()
    grant = Grant(1, fake.id, 1, fake.server.address, 0.0, 4096, b"")
    for event, decision in ((Reserved(), Submit(1)), (Granted(grant), Start(grant))):
        live.tell(event)
        assert await live.decisions.get() == decision
    links.start(live, grant)
    return live


async def test_a_session_with_another_life_of_a_worker_is_not_kept(clock: FakeClock) -> None:
    fake = FakeWorker()
    fake.incarnation = 2
    await fake.server.start()
    links = WorkerLinks(ROUTER, Delivery(clock), clock)
    async with background(links.run(), "workers"):
        live = await granted(links, fake)
        assert links._links
        while not isinstance(decision := await soon(live.decisions.get()), Submit):
            pass
        assert (decision.attempt, live.life.excluded, live.life.continued) == (2, None, False)
        assert not links._links
        assert fake.starts.empty(), "it is shown no prompt"
    await fake.server.kill()


async def test_a_worker_that_is_not_there_ends_the_attempt(clock: FakeClock) -> None:
    fake = FakeWorker()
    await fake.server.start()
    await fake.server.kill()
    links = WorkerLinks(ROUTER, Delivery(clock), clock)
    async with background(links.run(), "workers"):
        live = await granted(links, fake)
        while not isinstance(decision := await soon(live.decisions.get()), Submit):
            pass
        assert (decision.attempt, live.life.excluded, live.life.continued) == (2, "w1", False)


async def test_a_certificate_that_is_missing_for_a_moment_costs_an_attempt_and_not_the_router(
    clock: FakeClock, tmp_path: Path
) -> None:
    file = tmp_path / "router.pem"
    file.write_text("being replaced")
    tls = TlsConfig(ca_file=file, certificate_file=file, key_file=file)
    file.unlink()
    fake = FakeWorker()
    await fake.server.start()
    links = WorkerLinks(ROUTER, Delivery(clock), clock, tls)
    async with background(links.run(), "workers") as running:
        live = await granted(links, fake)
        while not isinstance(decision := await soon(live.decisions.get()), Submit):
            pass
        assert (decision.attempt, live.life.continued) == (2, False)
        assert not links._links, "the next grant tries again"
        assert not running.done()
    await fake.server.kill()


async def test_a_payload_that_has_not_left_is_taken_back(clock: FakeClock) -> None:
    fake = FakeWorker()
    links = WorkerLinks(ROUTER, Delivery(clock), clock)
    live = await granted(links, fake)
    live.tell(client_gone())
    links.cancel(live, FinishReason.CANCELLED)
    decisions = [live.decisions.get_nowait() for _ in range(live.decisions.qsize())]
    assert isinstance(decisions[-1], End)
    assert not live.life.settlement().started


def test_the_configuration_names_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        "id: router-1\nquota_address: nowhere\nscheduler_address: 127.0.0.1:1\nmetering_address: 127.0.0.1:1\n"
        "pepper: short\nmodels: []\nmax_requests: 0\nchannelz: true\n"
    )
    with pytest.raises(ConfigError) as caught:
        RouterConfig.load(file)
    for field in ("quota_address", "models", "max_requests", "channelz"):
        assert field in str(caught.value)
    pepper = tmp_path / "pepper"
    pepper.write_text("0123456789abcdef\n")
    model = f"[{{name: m, directory: {tmp_path}, context_tokens: 10}}]"
    file.write_text(
        "id: router-1\nquota_address: 127.0.0.1:1\nscheduler_address: 127.0.0.1:1\nmetering_address: 127.0.0.1:1\n"
        f"pepper_file: {pepper}\nmodels: {model}\n"
    )
    assert RouterConfig.load(file).pepper_bytes() == b"0123456789abcdef"
