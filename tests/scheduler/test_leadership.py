"""Terms of leadership over loopback: two schedulers on one store, whose bids the test makes, and a clock moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest
from structlog.testing import capture_logs

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error
from forebay.scheduler.config import SchedulerConfig
from forebay.scheduler.domain.lease import KEEP_S, TTL_S, Answer, Bid
from forebay.scheduler.domain.scheduler import Limits, Scheduler
from forebay.scheduler.domain.takeover import WAIT_S, Checkpoint
from forebay.scheduler.leadership import Leadership, Replica
from forebay.scheduler.lease_store import MemoryLeaseStore
from forebay.scheduler.main import FULL_NAME, build
from forebay.scheduler.servicer import SchedulerServicer
from forebay.testing.clock import FakeClock

from .test_sessions import FakePeer, ref, soon, submission


class Store(MemoryLeaseStore):
    """A store that a test takes away from some.

    Attributes:
        away_for: the ids of those.
        in_vain_s: how long they ask it in vain.
        lost_checkpoints: how many they brought.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.away_for: set[str] = set()
        self.in_vain_s = 0.0
        self.lost_checkpoints = 0
        self._clock = clock

    async def bid(self, bid: Bid) -> Answer:
        if bid.id in self.away_for:
            self._clock.advance(self.in_vain_s)
            self.lost_checkpoints += bid.checkpoint is not None
            raise MeshError(Code.UNAVAILABLE, "LEASE_STORE_UNAVAILABLE", "away")
        return await super().bid(bid)


class Member:
    """One scheduler."""

    def __init__(self, number: int, store: Store, clock: FakeClock) -> None:
        self.server = RpcServer("127.0.0.1:0")
        self.leadership = Leadership(
            store,
            Replica(f"s{number}", number, self.server.address),
            clock,
            lambda epoch: Scheduler(Limits(), epoch),
            lambda: self.server.set_serving(FULL_NAME, True),
        )
        self.clock = clock
        servicer = SchedulerServicer(self.leadership, common_pb2.Peer(id=f"s{number}", incarnation=number))
        self.server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, servicer, FULL_NAME)

    async def start(self, stack: AsyncExitStack) -> None:
        await self.server.start()
        stack.push_async_callback(self.server.drain, 0)
        channel = await stack.enter_async_context(connect(self.server.address, caller="test"))
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

    async def bid(self) -> bool:
        """Bids, and says whether it leads then."""
        await self.leadership.bid()
        return self.leadership.term is not None

    def look(self) -> None:
        """What `watch_time` does now and then."""
        assert self.leadership.term is not None
        self.leadership.term.look_at_time()

    async def router(self, id: str = "r1", highest_epoch: int = 0, **first: object) -> FakePeer:
        peer = FakePeer(self.stub.Schedule())
        peer_of = common_pb2.Peer(id=id, incarnation=1)
        hello = scheduler_pb2.ScheduleRequest.Hello(router=peer_of, highest_epoch=highest_epoch)
        await peer.say(scheduler_pb2.ScheduleRequest(hello=hello, **first))  # type: ignore[arg-type]
        return peer

    async def worker(self, id: str = "w1", highest_epoch: int = 0, **first: object) -> FakePeer:
        peer = FakePeer(self.stub.Attach())
        register = scheduler_pb2.AttachRequest.Register(
            worker=common_pb2.Peer(id=id, incarnation=1),
            address=f"{id}:9",
            model="m",
            highest_epoch=highest_epoch,
            capacity=scheduler_pb2.Capacity(
                kv_tokens=1000, block_tokens=1, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512
            ),
        )
        await peer.say(scheduler_pb2.AttachRequest(register=register, **first))  # type: ignore[arg-type]
        return peer


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(clock)


@pytest.fixture
async def pair(store: Store, clock: FakeClock) -> AsyncIterator[tuple[Member, Member]]:
    async with AsyncExitStack() as stack:
        first, second = Member(1, store, clock), Member(2, store, clock)
        for member in (first, second):
            await member.start(stack)
        assert await first.bid()
        assert not await second.bid()
        yield first, second


Pair = tuple[Member, Member]


async def test_a_follower_names_the_leader_and_lets_go(pair: Pair) -> None:
    leader, follower = pair
    for peer in (await follower.router(), await follower.worker()):
        welcome = (await peer.hear()).welcome
        assert (welcome.epoch, welcome.leader_address) == (0, leader.server.address)
        assert await soon(peer._call.read()) is grpc.aio.EOF
        assert await soon(peer._call.code()) is grpc.StatusCode.OK
    assert (await (await leader.router()).hear()).welcome.epoch == leader.leadership.epoch > 0


async def test_a_followers_pools_are_the_leaders_to_tell(pair: Pair) -> None:
    leader, follower = pair
    request = scheduler_pb2.DescribePoolsRequest()
    await leader.stub.DescribePools(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await follower.stub.DescribePools(request)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "NOT_LEADER")
    assert error.metadata["leader"] == leader.server.address


async def test_a_leader_that_resigns_ends_its_sessions_and_another_leads_at_once(pair: Pair) -> None:
    first, second = pair
    peer = await first.router(held_complete=True)
    epoch = (await peer.hear()).welcome.epoch
    first.look()
    await asyncio.sleep(0)
    await first.leadership.resign()
    error = await peer.fails()
    assert (error.reason, error.metadata["leader"]) == ("NOT_LEADER", ""), "whoever leads next is not known"
    assert await second.bid()
    assert second.leadership.epoch > epoch
    second.look()
    await asyncio.sleep(0)
    assert second.leadership.leading().checkpoint() is None, "it waits for whom the one before knew to the last"
    assert not await first.bid()


async def test_a_follower_that_resigns_does_not_take_the_lease_first(pair: Pair, clock: FakeClock) -> None:
    _, follower = pair
    clock.advance(TTL_S)
    with capture_logs() as logs:
        await follower.leadership.resign()
    assert "leads" not in {line["event"] for line in logs}


async def test_a_scheduler_that_is_told_to_stop_hands_over_while_its_calls_still_run(redis_url: str) -> None:
    async with AsyncExitStack() as stack:

        async def scheduler(number: int) -> RpcServer:
            config = SchedulerConfig(id=f"s{number}", redis_url=redis_url, domain="test-drain")
            server = await build(config, stack)
            await server.start()
            stack.push_async_callback(server.drain, 0)
            return server

        async def leads(server: RpcServer) -> None:
            async with connect(server.address, caller="test") as channel:
                stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
                while True:
                    try:
                        await stub.DescribePools(scheduler_pb2.DescribePoolsRequest())
                        return
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)

        first = await scheduler(1)
        await soon(leads(first))
        async with connect(first.address, caller="test") as channel:
            router = FakePeer(scheduler_pb2_grpc.SchedulerServiceStub(channel).Schedule())
            hello = scheduler_pb2.ScheduleRequest.Hello(router=common_pb2.Peer(id="r1", incarnation=1))
            await router.say(scheduler_pb2.ScheduleRequest(hello=hello))
            await router.hear()
            draining = asyncio.create_task(first.drain(60))
            assert (await router.fails()).reason == "NOT_LEADER"
            await soon(leads(await scheduler(2)))
            await draining


@pytest.mark.parametrize("kind", ["router", "worker"])
async def test_a_leader_below_what_its_peers_have_met_leads_anew_above_it(
    pair: Pair, clock: FakeClock, kind: str
) -> None:
    leader, follower = pair
    met = leader.leadership.epoch + 300_000_000
    peer = await (leader.router if kind == "router" else leader.worker)(highest_epoch=met)
    await peer.hear()
    clock.advance(1)
    assert await leader.bid()
    assert (await peer.fails()).reason == "NOT_LEADER"
    assert leader.leadership.epoch == met + 1
    assert not await follower.bid()


async def serve_two(leader: Member, clock: FakeClock) -> tuple[FakePeer, FakePeer]:
    """A router and a worker with the leader, which has left its checkpoint."""
    router, worker = await leader.router(held_complete=True), await leader.worker(running_complete=True)
    await router.hear()
    await worker.hear()
    clock.advance(1)
    await leader.bid()
    return router, worker


async def test_a_new_leader_grants_once_all_have_spoken(pair: Pair, clock: FakeClock) -> None:
    first, second = pair
    await serve_two(first, clock)
    clock.advance(TTL_S)
    assert await second.bid()
    worker = await second.worker(running_complete=True)
    await worker.hear()
    router = await second.router(submissions=[submission(1)])
    await router.hear()
    second.look()
    assert second.leadership.term is not None
    assert second.leadership.term.checkpoint() is None, "that of the leader before stays"
    await router.say(scheduler_pb2.ScheduleRequest(held_complete=True))
    (grant,) = (await router.hear()).grants
    assert (grant.ref, grant.epoch) == (ref(1), second.leadership.epoch)
    assert (await worker.hear()).batches[0].epoch == second.leadership.epoch
    assert second.leadership.term.checkpoint() == Checkpoint(frozenset({"r1"}), frozenset({"w1"}))


async def test_a_new_leader_waits_for_the_silent_for_two_seconds(pair: Pair, clock: FakeClock) -> None:
    first, second = pair
    await serve_two(first, clock)
    await (await first.worker("w2", running_complete=True)).hear()
    clock.advance(1)
    await first.bid()
    await first.leadership.resign()
    assert await second.bid()
    await (await second.worker(running_complete=True)).hear()
    router = await second.router(held_complete=True, submissions=[submission(1)])
    await router.hear()
    clock.advance(WAIT_S - 0.01)
    second.look()
    await router.say(scheduler_pb2.ScheduleRequest(submissions=[submission(2)]))
    while sum(pool.queued for pool in second.leadership.leading().core.pools) < 2:
        await asyncio.sleep(0)
    clock.advance(0.01)
    second.look()
    assert len((await router.hear()).grants) == 2


async def test_a_leader_that_was_stopped_grants_again_only_after_the_stores_word(pair: Pair, clock: FakeClock) -> None:
    leader, _ = pair
    router, _ = await serve_two(leader, clock)
    clock.advance(KEEP_S)
    await router.say(scheduler_pb2.ScheduleRequest(submissions=[submission(1)]))
    assert leader.leadership.term is not None
    (pool,) = leader.leadership.term.core.pools
    while not pool.queued:
        await asyncio.sleep(0)
    leader.look()
    await asyncio.sleep(0)
    assert pool.queued
    assert await leader.bid()
    assert len((await router.hear()).grants) == 1


async def test_a_leader_that_was_stopped_while_it_asked_has_not_asked_in_vain(
    pair: Pair, store: Store, clock: FakeClock
) -> None:
    first, second = pair
    router, _ = await serve_two(first, clock)
    store.away_for, store.in_vain_s = {"s1"}, 10 * TTL_S
    await first.bid()  # the answer's time was over when it woke
    assert await second.bid()
    await router.say(scheduler_pb2.ScheduleRequest(submissions=[submission(1)]))
    (pool,) = first.leadership.leading().core.pools
    while not (pool.queued or pool.workers["w1"].in_flight):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pool.queued, "another leads"


async def test_a_leader_goes_on_without_the_store_until_it_hears_of_another(
    pair: Pair, store: Store, clock: FakeClock
) -> None:
    first, second = pair
    router, _ = await serve_two(first, clock)
    store.away_for = {"s1", "s2"}
    for number in range(6):
        clock.advance(1)
        assert await first.bid()
        assert not await second.bid()
        await router.say(scheduler_pb2.ScheduleRequest(submissions=[submission(number)]))
        assert [grant.ref for grant in (await router.hear()).grants] == [ref(number)]
    assert store.lost_checkpoints == 1, "one that nobody takes is made once"
    store.away_for = {"s1"}
    assert not await second.bid(), "the leader may return first"
    clock.advance(TTL_S)
    assert await second.bid()
    assert await first.bid()
    store.away_for = set()
    assert not await first.bid()
    assert (await router.fails()).metadata["leader"] == second.server.address


async def test_a_checkpoint_that_cannot_be_read_is_left(pair: Pair, store: Store) -> None:
    first, second = pair
    epoch = first.leadership.epoch
    await store.bid(Bid("s1", 1, "", epoch, epoch, 0, checkpoint="from another version"))
    await store.release(epoch)
    assert await second.bid()
    assert not await first.bid()
