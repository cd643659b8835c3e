"""A router that is told to stop: what runs goes on, what comes is refused, and what does not end in time is told why."""

from __future__ import annotations

import asyncio

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError
from forebay.router.domain.decisions import Outcome
from forebay.router.domain.events import FinishReason
from forebay.router.service import LAST_USAGE_S, LAST_WRITES_S

from .conftest import METADATA, RouterWorld
from .peers import soon
from .streams import failure, rest, started
from .test_service import CALLER, World, ask, until
from .test_service import world as twins  # noqa: F401 - a fixture


async def test_what_runs_goes_on_and_what_comes_is_refused(twins: World) -> None:  # noqa: F811
    running = twins.begin()
    request = await twins.running()
    draining = asyncio.create_task(twins.router.drain(120.0))
    await asyncio.sleep(0)
    with pytest.raises(MeshError) as refused:
        await twins.begin()
    assert (refused.value.code, refused.value.reason, refused.value.retry_after) == (Code.UNAVAILABLE, "DRAINING", 1)
    with pytest.raises(MeshError, match="DRAINING"):
        await twins.router.count_tokens(CALLER, "", ask().prompt)
    await twins.pass_time(60)
    twins.workers.yield_tokens(request.id, [0, 1])
    twins.workers.finish(request.id, FinishReason.STOP)
    await running
    await until(draining.done)


async def test_who_waits_is_told_each_second(twins: World) -> None:  # noqa: F811
    told: list[tuple[int, float]] = []
    running = twins.begin()
    request = await twins.running()
    draining = asyncio.create_task(twins.router.drain(3.0, lambda left, seconds: told.append((left, round(seconds)))))
    await twins.pass_time(1.5)
    assert told == [(1, 3), (1, 2)]
    twins.workers.finish(request.id, FinishReason.STOP)
    await running
    await until(draining.done)


async def test_at_the_end_of_the_time_a_request_ends_typed_and_is_settled(twins: World) -> None:  # noqa: F811
    running = twins.begin()
    request = await twins.running()
    twins.workers.yield_tokens(request.id, [0, 1])
    draining = asyncio.create_task(twins.router.drain(3.0))
    await twins.pass_time(3.5)
    with pytest.raises(MeshError) as cut_off:
        await running
    assert (cut_off.value.code, cut_off.value.reason, cut_off.value.retry_after) == (Code.UNAVAILABLE, "DRAINING", 1)
    assert (await twins.settled()).usage.completion_tokens == 2
    assert [report.outcome for _, report in twins.metering.reports] == [Outcome.CANCELLED]
    await until(draining.done)


async def test_a_worker_that_says_nothing_more_is_not_waited_for(
    twins: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(twins.workers, "cancel", lambda request, reason: None)
    running = twins.begin()
    await twins.running()
    draining = asyncio.create_task(twins.router.drain(0))
    await twins.pass_time(LAST_USAGE_S + 2)
    with pytest.raises(MeshError, match="DRAINING"):
        await running
    await until(draining.done)


async def test_a_request_that_is_not_admitted_yet_is_told_as_well(
    twins: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(request: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(twins.quota, "reserve", silent)
    running = twins.begin()
    await asyncio.sleep(0)
    draining = asyncio.create_task(twins.router.drain(0))
    with pytest.raises(MeshError, match="DRAINING"):
        await running
    await until(draining.done)
    assert not twins.quota.held


async def test_a_client_that_does_not_read_its_last_word_does_not_hold_up_the_end(twins: World) -> None:  # noqa: F811
    class Clogged:
        async def started(self, _: object) -> None:
            await asyncio.Event().wait()

        async def deliver(self, _: object) -> None:
            raise AssertionError

        async def finished(self, _: object) -> None:
            raise AssertionError

    running = twins.begin(Clogged())
    await until(lambda: bool(twins.live))
    draining = asyncio.create_task(twins.router.drain(0))
    await twins.pass_time(LAST_USAGE_S + LAST_WRITES_S + 2)
    await until(draining.done)
    with pytest.raises(MeshError, match="DRAINING"):
        await running


@pytest.mark.slow
async def test_a_draining_router_answers_that_it_is_one(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    start = await soon(world.worker.starts.get())
    follower = world.usage.StreamUsage(router_pb2.StreamUsageRequest(follow=True), metadata=METADATA)
    await soon(world.metering.following.wait())
    draining = asyncio.create_task(world.server.drain(60))
    assert (await failure(follower)).reason == "DRAINING", "it would never end"
    health = health_pb2_grpc.HealthStub(world.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
    refused = await failure(world.stream())
    assert (refused.code, refused.reason, refused.retry_after) == (Code.UNAVAILABLE, "DRAINING", 1)
    world.worker.say(start.ref, 0, [1], "a")
    world.worker.finish(start, 1, common_pb2.FINISH_REASON_STOP)
    assert (await rest(call))[2].finish_reasons == [common_pb2.FINISH_REASON_STOP]
    await soon(draining)


@pytest.mark.slow
async def test_a_stream_that_outlasts_the_drain_ends_typed_on_the_wire(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    start = await soon(world.worker.starts.get())
    draining = asyncio.create_task(world.server.drain(0))
    await soon(world.worker.cancels.get())
    world.worker.finish(start, 0, common_pb2.FINISH_REASON_CANCELLED)
    error = await failure(call)
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "DRAINING", 1)
    await soon(draining)
