"""The use cases over the ports' twins: one request's life, from whichever side it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from forebay import killpoints
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.lifecycle import background
from forebay.router import service
from forebay.router.access import Caller
from forebay.router.client import Client, Finished, GatheredAnswer, Started
from forebay.router.delivery import Delivery
from forebay.router.domain.ask import Chat, Message, ModelCard, Sampling, Text
from forebay.router.domain.decisions import Outcome, Settlement
from forebay.router.domain.events import FinishReason, Usage
from forebay.router.metering import MemoryMetering
from forebay.router.models import Models
from forebay.router.quota import MemoryQuota
from forebay.router.request import LiveRequests, Request, lease_lost
from forebay.router.scheduler import MemoryScheduler
from forebay.router.service import Bounds, Router
from forebay.router.workers import MemoryWorkers
from forebay.testing.clock import FakeClock

from .samples import ACME, ACME_KEY, CALLER, CARD, HELLO_IDS, ask, models


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until `condition` holds; a thousand turns are more than anything here takes."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come about")


class World:
    """A router over twins, running."""

    def __init__(self, clock: FakeClock, *workers: str, bounds: Bounds | None = None) -> None:
        self.clock = clock
        self.quota = MemoryQuota()
        self.scheduler = MemoryScheduler(*workers)
        self.delivery = Delivery(clock)
        self.workers = MemoryWorkers(self.delivery)
        self.metering = MemoryMetering()
        self.objections: dict[str, MeshError] = {}
        self.live: LiveRequests = {}
        self.router = self.new_router(models(), bounds or Bounds(max_requests=2))

    def new_router(self, served: Models, bounds: Bounds) -> Router:
        return Router(
            served,
            self.quota,
            self.scheduler,
            self.workers,
            self.metering,
            lambda caller: self.objections.get(caller.tenant.tenant_id),
            self.live,
            self.clock,
            bounds,
        )

    def begin(self, client: Client | None = None, time_left_s: float | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.router.answer(CALLER, ask(), client or GatheredAnswer(), time_left_s))

    async def running(self) -> Request:
        """Returns the one request, once a worker has it."""
        await until(lambda: bool(self.workers.running))
        ((request, _),) = self.workers.running.values()
        return request

    async def settled(self) -> Settlement:
        """Returns the one settlement, once it is made."""
        await until(lambda: bool(self.quota.settled))
        (settlement,) = self.quota.settled.values()
        assert not self.quota.held
        assert not self.live
        return settlement

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock in steps that every watch sees."""
        for _ in range(round(seconds / 0.1)):
            self.clock.advance(0.1)
            await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture
async def world(clock: FakeClock) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(clock, "w1", "w2")
        await stack.enter_async_context(background(world.delivery.run(), "delivery"))
        await stack.enter_async_context(background(world.router.watch(), "watch"))
        yield world


async def test_an_answer_from_admission_to_settlement(world: World) -> None:
    answer = GatheredAnswer()
    task = world.begin(answer)
    request = await world.running()
    assert list(request.payload.prompt_token_ids) == HELLO_IDS
    assert request.payload.prefix_hashes == []
    world.workers.yield_tokens(request.id, [0, 1])
    world.workers.yield_tokens(request.id, [2])
    world.workers.finish(request.id, FinishReason.STOP)
    await task
    assert answer.start is not None
    assert answer.end is not None
    assert (answer.start.request_id, answer.start.prompt_tokens) == (request.id, len(HELLO_IDS))
    assert (answer.token_ids, answer.text) == ([0, 1, 2], "abc")
    usage = Usage(len(HELLO_IDS), 0, 3)
    assert (answer.end.reason, answer.end.usage) == (FinishReason.STOP, usage)
    assert await world.settled() == Settlement(True, usage, 0.0)


async def test_a_refused_reservation_ends_it_with_every_limit_named(world: World) -> None:
    violation = QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 20)
    world.quota.refusal = MeshError(
        Code.RESOURCE_EXHAUSTED, "QUOTA", "no room", retry_after=3, quota_violations=[violation]
    )
    with pytest.raises(MeshError, match="QUOTA") as caught:
        await world.begin()
    assert caught.value.quota_violations == (violation,)
    assert not world.scheduler.log
    assert not world.quota.settled


async def test_a_lost_worker_is_replaced_and_the_client_sees_one_stream(world: World) -> None:
    answer = GatheredAnswer()
    task = world.begin(answer)
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1, 2])
    world.workers.break_off("w1")
    request = await world.running()
    assert request.life.base == 3
    world.workers.yield_tokens(request.id, [3, 4])
    world.workers.finish(request.id, FinishReason.LENGTH)
    await task
    assert answer.text == "abcde"
    assert world.workers.started == [(request.id, 1, "w1"), (request.id, 2, "w2")]
    assert (await world.settled()).usage.completion_tokens == 5


async def test_with_no_other_worker_it_waits_for_one(world: World) -> None:
    world.scheduler.workers = ["w1"]
    answer = GatheredAnswer()
    task = world.begin(answer)
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1])
    world.workers.break_off("w1")
    await until(lambda: ("submit", request.id, 2) in world.scheduler.log)
    assert not world.workers.running
    world.scheduler.workers = ["another"]
    world.scheduler.submit(request)
    await world.running()
    world.workers.finish(request.id, FinishReason.STOP)
    await task
    assert answer.text == "ab"


@pytest.mark.parametrize("end", ["deadline", "cancel"])
async def test_the_gap_between_two_attempts_can_be_the_end(world: World, end: str) -> None:
    world.scheduler.workers = ["w1"]
    task = world.begin(time_left_s=2.0)
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1])
    world.workers.break_off("w1")
    await until(lambda: ("submit", request.id, 2) in world.scheduler.log)
    if end == "cancel":
        task.cancel()
    else:
        await world.pass_time(2.1)
    with pytest.raises(asyncio.CancelledError if end == "cancel" else MeshError):
        await task
    assert await world.settled() == Settlement(True, Usage(len(HELLO_IDS), 0, 2), 0.0)
    assert ("withdraw", request.id, 2) in world.scheduler.log
    assert [(report.outcome, report.completion_to) for _, report in world.metering.reports] == [(Outcome.LOST, 2)]


async def test_each_attempt_that_may_have_run_is_reported_once(world: World) -> None:
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1])
    world.workers.break_off("w1")
    await world.running()
    world.workers.yield_tokens(request.id, [2])
    world.workers.finish(request.id, FinishReason.LENGTH)
    await task
    assert [
        (report.grant.attempt, report.outcome, report.completion_from, report.completion_to)
        for _, report in world.metering.reports
    ] == [(1, Outcome.LOST, 0, 2), (2, Outcome.COMPLETED, 2, 3)]


async def test_a_suspended_tenant_is_stopped_where_it_is(world: World) -> None:
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0])
    world.router.policies_changed()
    assert request.decisions.empty(), "nothing speaks against it"
    world.objections["acme"] = MeshError(Code.PERMISSION_DENIED, "TENANT_SUSPENDED", "suspended")
    world.router.policies_changed()
    with pytest.raises(MeshError, match="TENANT_SUSPENDED"):
        await task
    assert (await world.settled()).usage.completion_tokens == 1


async def test_a_tenant_that_is_suspended_before_it_begins_pays_nothing(world: World) -> None:
    world.objections["acme"] = MeshError(Code.PERMISSION_DENIED, "TENANT_SUSPENDED", "suspended")
    with pytest.raises(MeshError, match="TENANT_SUSPENDED"):
        await world.begin()
    assert not (await world.settled()).started
    assert not world.scheduler.log


async def test_one_tenant_cannot_fill_the_router(clock: FakeClock) -> None:
    world = World(clock, bounds=Bounds(max_tenant_requests=2))
    first = [world.begin(), world.begin()]
    await until(lambda: len(world.scheduler.log) == 2)
    with pytest.raises(MeshError) as caught:
        await world.begin()
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_FULL")
    assert caught.value.quota_violations == (QuotaViolation("tenant:acme", "requests_per_router", 2, 2, 1),)
    globex = Caller(replace(ACME, tenant_id="globex"), ACME_KEY)
    other = asyncio.create_task(world.router.answer(globex, ask(), GatheredAnswer(), None))
    await until(lambda: len(world.scheduler.log) == 3)
    first[0].cancel()
    await until(lambda: len(world.live) == 2)
    again = world.begin()
    await until(lambda: len(world.scheduler.log) == 5)
    for task in (first[1], other, again):
        task.cancel()
    await until(lambda: not world.live)


async def test_the_points_at_which_a_kill_matters(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool, int, int, bool]] = []

    def reached(point: str) -> None:
        assert point in killpoints.POINTS
        state = bool(world.quota.held), len(world.scheduler.log), len(world.workers.started), bool(world.quota.settled)
        seen.append((point, *state))

    monkeypatch.setattr(service, "reached", reached)
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0])
    world.workers.finish(request.id, FinishReason.STOP)
    await task
    assert seen == [
        ("router.after_reserve", True, 0, 0, False),
        ("router.after_grant", True, 1, 0, False),
        ("router.before_settle", True, 1, 1, False),
    ]


async def test_a_client_that_leaves_is_settled_by_the_workers_count(world: World) -> None:
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    settlement = await world.settled()
    assert (settlement.started, settlement.usage.completion_tokens) == (True, 2)


async def test_a_worker_that_does_not_answer_the_cancel_is_waited_for_within_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.workers, "cancel", lambda request, reason: None)
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0, 1])
    task.cancel()
    await until(lambda: request.stopping_at is not None)
    await world.pass_time(4.8)
    assert not world.quota.settled
    await world.pass_time(0.3)
    assert (await world.settled()).usage.completion_tokens == 2
    assert not world.workers.running, "it is forgotten"


async def test_a_client_that_leaves_the_queue_pays_nothing(world: World) -> None:
    world.scheduler.workers.clear()
    task = world.begin()
    await until(lambda: bool(world.scheduler.log))
    (request_id,) = world.live
    task.cancel()
    assert not (await world.settled()).started
    assert world.scheduler.log == [("submit", request_id, 1), ("withdraw", request_id, 1)]


async def test_a_request_out_of_time_is_ended(world: World) -> None:
    world.scheduler.workers.clear()
    task = world.begin(time_left_s=2.0)
    await until(lambda: bool(world.scheduler.log))
    await world.pass_time(2.1)
    with pytest.raises(MeshError, match="DEADLINE_EXCEEDED"):
        await task
    assert not (await world.settled()).started


async def test_a_client_that_does_not_take_the_first_word_is_cut_off(clock: FakeClock) -> None:
    class Clogged(GatheredAnswer):
        async def started(self, started: Started) -> None:
            await asyncio.Event().wait()

    world = World(clock, bounds=Bounds(slow_client_s=0.01))
    with pytest.raises(MeshError, match="CLIENT_TOO_SLOW"):
        await world.begin(Clogged())
    assert not (await world.settled()).started


async def test_a_client_that_does_not_take_the_last_word_is_cut_off(clock: FakeClock) -> None:
    class Clogged(GatheredAnswer):
        async def finished(self, finished: Finished) -> None:
            await asyncio.Event().wait()

    world = World(clock, "w1", bounds=Bounds(slow_client_s=0.01))
    task = world.begin(Clogged())
    world.workers.finish((await world.running()).id, FinishReason.STOP)
    with pytest.raises(MeshError, match="CLIENT_TOO_SLOW"):
        await asyncio.wait_for(task, 10)
    assert (await world.settled()).started


async def test_a_lost_lease_ends_it(world: World) -> None:
    task = world.begin()
    (await world.running()).tell(lease_lost())
    with pytest.raises(MeshError, match="LEASE_LOST"):
        await task
    assert (await world.settled()).started


async def test_no_time_and_no_room_are_refused_before_any_work(world: World) -> None:
    with pytest.raises(MeshError, match="DEADLINE_TOO_SHORT"):
        await world.begin(time_left_s=0.05)
    running = [world.begin(), world.begin()]
    await until(lambda: len(world.workers.running) == 2)
    with pytest.raises(MeshError, match="ROUTER_FULL"):
        await world.begin()
    for request_id in list(world.workers.running):
        world.workers.finish(request_id, FinishReason.STOP)
    await asyncio.gather(*running)


async def test_the_end_of_the_router_settles_what_is_left(world: World) -> None:
    task = world.begin()
    request = await world.running()
    world.workers.yield_tokens(request.id, [0])
    await world.router.settle_all()
    assert (await world.settled()).usage.completion_tokens == 1
    with pytest.raises(MeshError, match="CLIENT_GONE"):
        await task


async def test_what_the_client_is_told_of_times(world: World) -> None:
    answer = GatheredAnswer()
    world.scheduler.workers.clear()
    task = world.begin(answer)
    await until(lambda: bool(world.scheduler.log))
    (request,) = world.live.values()
    await world.pass_time(1.5)
    world.scheduler.workers.append("w1")
    world.scheduler.submit(request)
    await world.running()
    world.workers.finish(request.id, FinishReason.STOP)
    await task
    assert answer.end is not None
    assert answer.end.queue_time_s == pytest.approx(1.5)
    assert answer.end.time_to_first_token_s is None


@pytest.mark.parametrize(
    ("caller", "change", "reason"),
    [
        (CALLER, {"model": "other"}, "MODEL_NOT_FOUND"),
        (Caller(replace(ACME, models=("other",)), ACME_KEY), {}, "MODEL_NOT_FOUND"),
        (Caller(ACME, replace(ACME_KEY, models=("other",))), {}, "MODEL_NOT_FOUND"),
        (CALLER, {"adapter": "lora"}, "ADAPTER_NOT_FOUND"),
        (Caller(replace(ACME, adapters=("mine",)), ACME_KEY), {"adapter": "lora"}, "ADAPTER_NOT_FOUND"),
        (CALLER, {"sampling": Sampling(n=2)}, "FEATURE_NOT_OFFERED"),
        (CALLER, {"prompt": None}, "BAD_REQUEST"),
        (CALLER, {"sampling": Sampling(max_tokens=4095)}, "BAD_REQUEST"),
        (Caller(replace(ACME, system_prompt="Be kind."), ACME_KEY), {"prompt": Text("hi")}, "BAD_REQUEST"),
    ],
)
async def test_what_cannot_be_answered_is_refused_and_nothing_is_held(
    world: World, caller: Caller, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(MeshError, match=reason):
        await world.router.answer(caller, ask(**change), GatheredAnswer(), None)
    assert not world.quota.held
    assert not world.quota.settled


async def test_tokens_are_counted_with_the_system_prompt(world: World) -> None:
    hello = Chat((Message("user", "hello"),))
    assert await world.router.count_tokens(CALLER, "", hello) == (len(HELLO_IDS), CARD.context_tokens - len(HELLO_IDS))
    kind = Caller(replace(ACME, system_prompt="Be kind."), ACME_KEY)
    size, _ = await world.router.count_tokens(kind, "tiny", hello)
    assert size == len(HELLO_IDS) + len("system\0Be kind.\0")
    with pytest.raises(MeshError, match="BAD_REQUEST"):
        await world.router.count_tokens(kind, "tiny", Text("hello"))


@pytest.mark.parametrize(
    ("allowed", "name", "message"),
    [
        (None, "", "the request names no model, and there is more than one; there are large, small"),
        (None, "smal", "there is no model 'smal' for this key; did you mean small?"),
        (("small",), "large", "there is no model 'large' for this key; there is small"),
        ((), "", "this key may use no model that is served here; ask the operator"),
        ((), "small", "this key may use no model that is served here; ask the operator"),
        (("gone",), "", "this key may use no model that is served here; ask the operator"),
    ],
)
def test_a_model_that_cannot_be_used_says_which_can(allowed: tuple[str, ...] | None, name: str, message: str) -> None:
    """Of models that the caller may not use, nothing is said; an empty list of either policy allows none."""
    two = models(replace(CARD, name="small"), replace(CARD, name="large"))
    for caller in (Caller(replace(ACME, models=allowed), ACME_KEY), Caller(ACME, replace(ACME_KEY, models=allowed))):
        with pytest.raises(MeshError) as caught:
            two.resolve(caller, name)
        assert (caught.value.reason, caught.value.message) == ("MODEL_NOT_FOUND", message)


def test_models_are_listed_by_page_and_by_who_asks(clock: FakeClock) -> None:
    cards = [ModelCard(name, 100, 10) for name in ("c", "a", "b")]
    world = World(clock)
    world.router = world.new_router(models(*cards), Bounds())
    assert [card.name for card in world.router.list_models(CALLER, "", 2)[0]] == ["a", "b"]
    assert world.router.list_models(CALLER, "", 2)[1]
    assert world.router.list_models(CALLER, "b", 2) == ([cards[0]], False)
    for none in (Caller(replace(ACME, models=()), ACME_KEY), Caller(ACME, replace(ACME_KEY, models=()))):
        assert world.router.list_models(none, "", 2) == ([], False)
    some = Caller(replace(ACME, models=("b",)), ACME_KEY)
    assert [card.name for card in world.router.list_models(some, "", 10)[0]] == ["b"]
