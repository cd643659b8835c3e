"""Routers and workers with a real server over loopback; the clock is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.context import Context

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.errors import MeshError
from forebay.rpc.client import connect
from forebay.rpc.status import from_pb_duration, from_rpc_error, to_pb_duration
from forebay.scheduler import service as service_module
from forebay.scheduler.config import SchedulerConfig
from forebay.scheduler.main import FULL_NAME, build
from forebay.testing.clock import FakeClock

T = TypeVar("T")

REQUEST_ID = "0123456789abcdef" * 2
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


async def soon(work: Awaitable[T]) -> T:
    """Bounds a wait, so that a bug fails a test instead of hanging it."""
    return await asyncio.wait_for(work, 60)


def ref(number: int = 0, attempt: int = 1) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(request_id=f"{number:x}".rjust(32, "0"), attempt=attempt)


def submission(number: int = 0, tenant_id: str = "acme", **values: Any) -> scheduler_pb2.Submission:
    defaults: dict[str, Any] = {
        "ref": ref(number),
        "tenant_id": tenant_id,
        "service_class": quota_pb2.SERVICE_CLASS_SILVER,
        "weight_milli": 1000,
        "model": "m",
        "prompt_tokens": 10,
        "max_tokens": 10,
    }
    return scheduler_pb2.Submission(**(defaults | values))


class FakePeer:
    """One end of a session, driven by hand; what it has read is checked by the test."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def say(self, message: Any) -> None:
        await soon(self._call.write(message))

    async def hear(self) -> Any:
        message = await soon(self._call.read())
        assert message is not grpc.aio.EOF
        return message

    async def fails(self) -> MeshError:
        """Returns the error that the scheduler ends the session with."""

        async def read_on() -> None:
            while await self._call.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(read_on())
        return from_rpc_error(caught.value)

    def leave(self) -> None:
        self._call.cancel()


class World:
    """A scheduler, and whoever a test connects to it."""

    def __init__(self, stack: AsyncExitStack, clock: FakeClock) -> None:
        self._stack = stack
        self.clock = clock

    async def start(self, **settings: Any) -> None:
        """Starts a scheduler; called again, another one that knows nothing of the first."""
        config = SchedulerConfig(**({"id": "scheduler-1", "listen": "127.0.0.1:0"} | settings))
        server = await build(config, self._stack, self.clock)
        await server.start()
        self._stack.push_async_callback(server.drain, 0)
        channel = await self._stack.enter_async_context(connect(server.address, caller="test"))
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def router(self, id: str = "router-1", **first: Any) -> FakePeer:
        peer = FakePeer(self.stub.Schedule())
        hello = scheduler_pb2.ScheduleRequest.Hello(router=common_pb2.Peer(id=id, incarnation=1))
        await peer.say(scheduler_pb2.ScheduleRequest(hello=hello, held_complete=True, **first))
        return peer

    async def worker(
        self, id: str = "worker-1", *, kv_tokens: int = 1000, incarnation: int = 1, pool: str = "", **first: Any
    ) -> FakePeer:
        peer = FakePeer(self.stub.Attach())
        register = scheduler_pb2.AttachRequest.Register(
            worker=common_pb2.Peer(id=id, incarnation=incarnation),
            address="127.0.0.1:9",
            model="m",
            pool=pool,
            capacity=scheduler_pb2.Capacity(
                kv_tokens=kv_tokens, block_tokens=1, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512
            ),
        )
        await peer.say(scheduler_pb2.AttachRequest(**({"register": register, "running_complete": True} | first)))
        assert (await peer.hear()).welcome.epoch
        return peer

    async def pools(self, **values: Any) -> scheduler_pb2.DescribePoolsResponse:
        return await soon(self.stub.DescribePools(scheduler_pb2.DescribePoolsRequest(**values)))

    async def until_leading(self) -> None:
        """Returns once it says that it leads."""
        while True:
            try:
                await self.pools()
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0)

    async def until(self, holds: Callable[[scheduler_pb2.DescribePoolsResponse], bool]) -> None:
        """Returns once the operators' view shows it."""

        async def look() -> None:
            while not holds(await self.pools()):
                pass

        await soon(look())

    async def until_waiting(self, count: int) -> None:
        await self.until(lambda shown: sum(flow.queued for pool in shown.pools for flow in pool.flows) == count)

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock once the scheduler sleeps on it."""
        await asyncio.sleep(0)
        self.clock.advance(seconds)


@pytest.fixture
async def world(clock: FakeClock) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(stack, clock)
        await world.start()
        yield world


def submit(*submissions: scheduler_pb2.Submission) -> scheduler_pb2.ScheduleRequest:
    return scheduler_pb2.ScheduleRequest(submissions=submissions)


async def test_it_serves_as_soon_as_it_listens(world: World) -> None:
    answer = await soon(world.health.Check(health_pb2.HealthCheckRequest(service=FULL_NAME)))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_scheduler_that_ends_hands_over_at_once_and_both_are_healthy(redis_url: str, clock: FakeClock) -> None:
    settings = {"redis_url": redis_url, "domain": "handover"}
    async with AsyncExitStack() as stack, AsyncExitStack() as ending:
        first, second = World(ending, clock), World(stack, clock)
        await first.start(**settings)
        await soon(first.until_leading())
        await second.start(**settings, id="scheduler-2")
        check = health_pb2.HealthCheckRequest(service=FULL_NAME)
        while (await soon(second.health.Check(check))).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        with pytest.raises(grpc.aio.AioRpcError, match="does not lead"):
            await second.pools()
        await ending.aclose()
        await second.pass_time(1)
        await soon(second.until_leading())


async def test_the_router_gets_a_grant_and_the_worker_a_batch(world: World) -> None:
    worker = await world.worker()
    router = await world.router()
    welcome = (await router.hear()).welcome
    assert (welcome.scheduler.id, welcome.epoch) == ("scheduler-1", int(world.clock.now() * 1e6))
    trace = common_pb2.TraceContext(traceparent=TRACEPARENT)
    await router.say(submit(submission(1, waited=to_pb_duration(2.5), trace=trace), submission(2, "globex")))
    heard = await router.hear()
    assert [grant.ref for grant in heard.grants] == [ref(1), ref(2)]
    first = heard.grants[0]
    assert (first.worker_id, first.worker_incarnation, first.worker_address) == ("worker-1", 1, "127.0.0.1:9")
    assert (first.prompt_tokens, first.max_tokens, first.kv_tokens, first.tenant_id) == (10, 10, 20, "acme")
    assert (from_pb_duration(first.expires_in), from_pb_duration(first.waited)) == (2.0, 2.5)
    (batch,) = (await worker.hear()).batches
    assert (batch.batch_id, batch.epoch) == (first.batch_id, first.epoch) == (1, welcome.epoch)
    assert [(entry.ref, entry.tenant_id, entry.kv_tokens) for entry in batch.entries] == [
        (ref(1), "acme", 20),
        (ref(2), "globex", 20),
    ]
    assert batch.entries[0].trace.traceparent == TRACEPARENT
    assert from_pb_duration(batch.entries[0].expires_in) == 2.0


@pytest.mark.parametrize("start_after_s", [0.5, 5.0])
async def test_a_paced_request_starts_no_earlier_than_it_may(world: World, start_after_s: float) -> None:
    await world.worker()
    router = await world.router()
    assert (await router.hear()).HasField("welcome")
    submitted_at = world.clock.monotonic()
    await router.say(submit(submission(1, start_after=to_pb_duration(start_after_s)), submission(2)))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(2)], "others of the flow pass it by"
    heard = asyncio.ensure_future(router.hear())
    while not heard.done():
        shown = await world.pools()
        if world.clock.monotonic() < submitted_at + start_after_s:
            assert shown.pools[0].queued == 1
            await world.pass_time(service_module.TICK_S)
    (grant,) = heard.result().grants
    assert grant.ref == ref(1)
    assert from_pb_duration(grant.waited) >= start_after_s


async def test_departures_make_room_for_who_waits(world: World) -> None:
    worker = await world.worker(kv_tokens=20)
    router = await world.router(submissions=[submission(1), submission(2)])
    heard = await router.hear()
    assert heard.HasField("welcome")
    assert [grant.ref for grant in heard.grants or (await router.hear()).grants] == [ref(1)]
    departure = scheduler_pb2.Departure(ref=ref(1), generated_tokens=5, started=True)
    await worker.say(scheduler_pb2.AttachRequest(departures=[departure]))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(2)]


async def test_a_declined_grant_is_withdrawn_from_its_worker(world: World) -> None:
    worker = await world.worker(kv_tokens=20)
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1), submission(2)))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(1)]
    await worker.hear()
    await router.say(scheduler_pb2.ScheduleRequest(declines=[ref(1)]))
    heard = await worker.hear()
    assert list(heard.withdrawals) == [ref(1)]
    assert [entry.ref for entry in heard.batches[0].entries] == [ref(2)]
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(2)]


async def test_a_cancelled_request_is_not_granted(world: World) -> None:
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1), submission(2)))
    await router.say(scheduler_pb2.ScheduleRequest(cancellations=[ref(1)]))
    await world.worker()
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(2)]


async def test_a_deadline_that_passes_in_the_queue_is_a_rejection(world: World) -> None:
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1, remaining=to_pb_duration(5.0)), submission(2)))
    await world.until_waiting(2)
    await world.pass_time(5.0)
    (rejection,) = (await router.hear()).rejections
    assert rejection.ref == ref(1)
    assert (rejection.error.code, rejection.error.reason) == (
        common_pb2.ERROR_CODE_DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
    )
    await world.pass_time(25.0)
    (rejection,) = (await router.hear()).rejections
    assert rejection.ref == ref(2)
    assert (rejection.error.code, rejection.error.reason) == (common_pb2.ERROR_CODE_UNAVAILABLE, "QUEUE_TIMEOUT")
    assert from_pb_duration(rejection.error.retry_after) == 1.0


async def test_a_bad_submission_is_rejected_alone(world: World) -> None:
    await world.worker()
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1, prompt_tokens=0, weight_milli=0), submission(2)))
    heard = await router.hear()
    (rejection,) = heard.rejections
    assert rejection.ref == ref(1)
    assert (rejection.error.code, rejection.error.reason) == (common_pb2.ERROR_CODE_INVALID_ARGUMENT, "BAD_SUBMISSION")
    assert [violation.field for violation in rejection.error.field_violations] == ["weight_milli", "prompt_tokens"]
    assert [grant.ref for grant in heard.grants] == [ref(2)]


async def test_a_router_that_comes_back_gets_its_grant_again(world: World) -> None:
    await world.worker()
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1)))
    (grant,) = (await router.hear()).grants
    router.leave()
    await world.pass_time(0.5)
    again = await world.router()
    await again.hear()
    await again.say(submit(submission(1)))
    (repeat,) = (await again.hear()).grants
    assert (repeat.batch_id, repeat.worker_id) == (grant.batch_id, grant.worker_id)
    assert from_pb_duration(repeat.expires_in) == 1.5


async def test_a_lost_routers_queue_is_dropped(world: World) -> None:
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1)))
    await world.until_waiting(1)
    router.leave()
    await world.until_waiting(0)


async def test_a_restarted_scheduler_is_told_again_and_keeps_everyones_place(world: World) -> None:
    await world.pass_time(1.0)
    await world.start()
    running = scheduler_pb2.RunningAttempt(ref=ref(9), tenant_id="acme", kv_tokens=20, generated_tokens=3, started=True)
    held = scheduler_pb2.HeldAttempt(
        ref=ref(9),
        state=scheduler_pb2.HeldAttempt.STATE_RUNNING,
        worker_id="worker-1",
        worker_incarnation=1,
        submission=submission(9),
    )
    late, early = submission(1, waited=to_pb_duration(1.0)), submission(2, waited=to_pb_duration(9.0))
    router = await world.router(submissions=[late, early], held=[held])
    assert not (await router.hear()).grants
    worker = await world.worker(kv_tokens=44, running_complete=False)
    await worker.say(scheduler_pb2.AttachRequest(running=[running]))
    await worker.say(scheduler_pb2.AttachRequest(running_complete=True))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(2)]
    progress = scheduler_pb2.Progress(ref=ref(9), generated_tokens=4, prefilled=True)
    await worker.say(scheduler_pb2.AttachRequest(progress=[progress]))
    await world.until(lambda shown: shown.pools[0].flows[0].service_tenths == 20 + 100)
    departure = scheduler_pb2.Departure(ref=ref(9), generated_tokens=4, started=True)
    await worker.say(scheduler_pb2.AttachRequest(departures=[departure]))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(1)]


async def test_a_lost_worker_is_granted_nothing_until_it_returns(world: World) -> None:
    worker = await world.worker()
    worker.leave()
    await world.until(lambda shown: not shown.pools[0].workers[0].engine.healthy)
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1)))
    await world.until_waiting(1)
    await world.worker(incarnation=2)
    (grant,) = (await router.hear()).grants
    assert grant.worker_incarnation == 2


async def test_a_workers_later_session_takes_the_place_of_the_one_before(world: World) -> None:
    before = await world.worker()
    await world.worker()
    await before.say(scheduler_pb2.AttachRequest(engine=scheduler_pb2.EngineState(healthy=True)))
    assert (await before.fails()).reason == "SUPERSEDED"
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1)))
    assert [grant.ref for grant in (await router.hear()).grants] == [ref(1)]


async def test_a_routers_later_session_takes_the_place_of_the_one_before(world: World) -> None:
    before, other = await world.router(submissions=[submission(1), submission(2)]), await world.router("router-2")
    for peer in (before, other):
        await peer.hear()
    await world.until_waiting(2)
    after = await world.router(submissions=[submission(2)])
    await after.hear()
    assert (await before.fails()).reason == "SUPERSEDED"
    await world.until_waiting(1)
    await world.worker()
    assert [grant.ref for grant in (await after.hear()).grants] == [ref(2)], "of the other its router knows nothing"
    await other.say(submit(submission(3)))
    assert [grant.ref for grant in (await other.hear()).grants] == [ref(3)]


async def test_a_worker_whose_clock_was_ahead_is_taken_and_so_is_its_next_life(world: World) -> None:
    ahead = await world.worker(incarnation=2**64 - 1)
    ahead.leave()
    await world.until(lambda shown: not any(w.engine.healthy for pool in shown.pools for w in pool.workers))
    await world.worker(incarnation=1)
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1)))
    (grant,) = (await router.hear()).grants
    assert grant.worker_incarnation == 1


@pytest.mark.parametrize("peer", ["router", "worker"])
async def test_a_session_that_does_not_introduce_itself_is_refused(world: World, peer: str) -> None:
    if peer == "router":
        caller = FakePeer(world.stub.Schedule())
        await caller.say(submit(submission(1)))
    else:
        caller = FakePeer(world.stub.Attach())
        await caller.say(scheduler_pb2.AttachRequest(running_complete=True))
    assert (await caller.fails()).reason == "BAD_PEER"


async def test_a_worker_without_a_capacity_is_refused(world: World) -> None:
    caller = FakePeer(world.stub.Attach())
    peer = common_pb2.Peer(id="worker-1", incarnation=1)
    await caller.say(
        scheduler_pb2.AttachRequest(
            register=scheduler_pb2.AttachRequest.Register(worker=peer, address="a:1", model="m")
        )
    )
    error = await caller.fails()
    assert error.reason == "BAD_REGISTER"
    assert {violation.field for violation in error.field_violations} >= {"capacity.kv_tokens", "capacity.max_num_seqs"}


async def test_operators_see_pools_workers_and_flows(world: World) -> None:
    worker = await world.worker(kv_tokens=44, draining=False)
    router = await world.router()
    await router.hear()
    await router.say(submit(submission(1), submission(2), submission(3, "globex"), submission(4, model="other")))
    await router.hear()
    state = scheduler_pb2.EngineState(running=2, waiting=1, kv_tokens_used=33, preemptions=4, healthy=True)
    await worker.say(scheduler_pb2.AttachRequest(engine=scheduler_pb2.EngineState(healthy=True)))
    await worker.say(scheduler_pb2.AttachRequest(engine=state))
    await world.until(lambda shown: shown.pools[0].workers[0].engine == state)
    first = await world.pools(page_size=1)
    (pool,) = first.pools
    assert (pool.name, pool.model) == ("", "m")
    (shown,) = pool.workers
    assert (shown.worker.id, shown.address) == ("worker-1", "127.0.0.1:9")
    assert (shown.kv_tokens_promised, shown.in_flight, shown.draining) == (40, 2, False)
    # Four preemptions at 0.05 each; both attempts end at once and come to 20 tokens each.
    assert (shown.alpha, shown.alpha_lowered) == pytest.approx((0.77, 0.2))
    assert (shown.kv_tokens_expected, shown.kv_tokens_lent) == (40, 0)
    assert [(each.service_class, each.queued) for each in pool.waiting] == [(quota_pb2.SERVICE_CLASS_SILVER, 1)]
    assert (pool.queued, pool.service_tenths, pool.fairness, pool.lends) == (1, 200, 1.0, False)
    assert [(flow.tenant_id, flow.queued, flow.in_flight, flow.service_tenths) for flow in pool.flows] == [
        ("acme", 1, 1, 100),
        ("globex", 0, 1, 100),
    ]
    assert [(flow.weight_milli, flow.virtual_counter) for flow in pool.flows] == [(1_000, 100)] * 2
    second = await world.pools(page_size=1, page_token=first.next_page_token)
    assert [pool.model for pool in second.pools] == ["other"]
    assert second.next_page_token == ""
    assert not (await world.pools(pool="gold")).pools
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.pools(page_size=1_001)
    assert from_rpc_error(caught.value).reason == "BAD_PAGE_SIZE"


async def test_operators_see_who_lends_to_whom_and_how_long_the_oldest_waits(world: World) -> None:
    await world.start(pools=[{"name": "gold", "lends": True}], class_weights={"gold": 3, "silver": 1})
    worker = await world.worker(kv_tokens=25, pool="gold")
    router = await world.router(submissions=[submission(1), submission(2, start_after=to_pb_duration(9))])
    assert (await worker.hear()).batches
    await world.until_waiting(0)
    await world.pass_time(3)
    shared, gold = (await world.pools()).pools
    assert (shared.name, list(shared.lenders), shared.lends) == ("", ["gold"], False)
    assert (gold.name, list(gold.lenders), gold.lends) == ("gold", [], True)
    assert gold.workers[0].kv_tokens_lent == 20
    (waits,) = shared.waiting
    assert (waits.queued, from_pb_duration(waits.oldest)) == (1, 3.0), "what is held back waits, too"
    router.leave()


async def test_the_wait_is_a_span_of_the_requests_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[str, Context, float, float, Mapping[str, Any]]] = []
    monkeypatch.setattr(service_module, "record_span", lambda *span: spans.append(span))
    router = await world.router()
    await router.hear()
    trace = common_pb2.TraceContext(traceparent=TRACEPARENT)
    await router.say(submit(submission(1, trace=trace), submission(2)))
    await world.until_waiting(2)
    began = world.clock.now()
    await world.pass_time(3.0)
    await world.worker()
    await router.hear()
    name, parent, start, end, attributes = spans[0]
    assert name == "scheduler.queue"
    assert TRACEPARENT.split("-")[1] in f"{next(iter(parent.values())).get_span_context().trace_id:032x}"
    assert (start, end) == (began, began + 3.0)
    assert attributes == {
        "forebay.request_id": ref(1).request_id,
        "forebay.attempt": 1,
        "forebay.tenant_id": "acme",
        "forebay.worker_id": "worker-1",
        "forebay.batch_id": 1,
        "forebay.queue_depth": 2,
    }
