"""The worker as its peers meet it: over loopback, around an engine that is stepped by hand."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay import tasks
from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.rpc.status import from_rpc_error
from forebay.worker import servicer
from forebay.worker.domain.spool_records import replay
from forebay.worker.lifetime import LAST_WORDS_S, TICK_S
from forebay.worker.servicer import FULL_NAME
from forebay.worker.spool_directory import SpoolDirectory
from forebay.worker.spool_event_log import RETRY_S

from .conftest import Loopback
from .peers import within

Health = health_pb2.HealthCheckResponse


def ref(number: int) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(request_id=f"{number:032x}", attempt=1)


async def healthy(loopback: Loopback, wanted: Health.ServingStatus.ValueType) -> None:
    """Returns once the worker's health is as wanted."""
    watch = health_pb2_grpc.HealthStub(loopback.channel).Watch(health_pb2.HealthCheckRequest(service=FULL_NAME))
    async with asyncio.timeout(60):
        loopback.clock.advance(TICK_S)
        async for response in watch:
            if response.status == wanted:
                return
            loopback.clock.advance(TICK_S)


# --- attempts


async def test_a_whole_attempt(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1, max_tokens=2))
    loopback.engine.step()
    first = await router.read()
    (delta,) = first.step.deltas
    assert (delta.ref, delta.completion_tokens, len(delta.token_ids)) == (1, 1, 1)
    assert delta.text
    assert not delta.HasField("finish")
    loopback.engine.step()
    second = await router.read()
    assert second.step.step > first.step.step
    finish = second.step.deltas[0].finish
    assert finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (10, 2)
    assert finish.gpu_time.ToNanoseconds() == 20_000_000
    assert finish.prefill_time.ToNanoseconds() == 10_000_000
    assert finish.decode_time.ToNanoseconds() == 10_000_000

    (event,) = await loopback.metering.came(1)
    assert (event.request_id, event.attempt, event.source) == (f"{1:032x}", 1, metering_pb2.EVENT_SOURCE_WORKER)
    assert event.outcome == metering_pb2.OUTCOME_COMPLETED
    assert (event.tenant_id, event.pool, event.worker) == ("acme", "gold", loopback.peer)
    assert (event.prompt_tokens, event.completion_from, event.completion_to) == (10, 0, 2)
    assert event.gpu_time.ToNanoseconds() == 20_000_000
    (departure,) = await loopback.scheduler.heard("departures")
    assert (departure.ref, departure.generated_tokens, departure.started) == (ref(1), 2, True)


async def test_one_step_is_one_message_to_each_router(loopback: Loopback) -> None:
    here, there = await loopback.router(), await loopback.router()
    await loopback.started(here, here.payload(1), here.payload(2))
    await loopback.started(there, there.payload(3))
    loopback.engine.step()
    assert [delta.ref for delta in (await here.read()).step.deltas] == [1, 2]
    assert [delta.ref for delta in (await there.read()).step.deltas] == [3]


async def test_a_continuation_counts_on_from_what_was_delivered(loopback: Loopback) -> None:
    router = await loopback.router()
    payload = router.payload(1, attempt=2, prompt_tokens=13)
    payload.continuation.token_ids.extend([301, 302, 303])
    payload.continuation.completion_from = 3
    await loopback.started(router, payload)
    loopback.engine.step()
    assert (await router.read()).step.deltas[0].completion_tokens == 4
    await router.cancel(1)
    (event,) = await loopback.metering.came(1)
    assert (event.completion_from, event.completion_to, event.recomputed_tokens) == (3, 4, 13)
    assert event.recomputed_gpu_time == event.gpu_time


async def test_after_a_cancel_no_step_starts_and_the_partial_usage_is_recorded_once(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1), router.payload(2))
    loopback.engine.step()
    await router.read()
    await router.cancel(1)
    assert await within(loopback.engine.aborted.get()) == f"{1:032x}/1"
    for _ in range(3):
        step = loopback.engine.step()
        assert step is not None
        assert step.participants == [f"{2:032x}/1"]
    finish = next(d.finish for d in (await router.read()).step.deltas if d.HasField("finish"))
    assert finish.reason == common_pb2.FINISH_REASON_CANCELLED
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (10, 1)
    await router.cancel(1)  # once more changes nothing
    await router.cancel(2, common_pb2.FINISH_REASON_BUDGET)
    one, two = await loopback.metering.came(2)
    assert (one.request_id, one.outcome, one.completion_to) == (f"{1:032x}", metering_pb2.OUTCOME_CANCELLED, 1)
    assert (two.request_id, two.outcome, two.completion_to) == (f"{2:032x}", metering_pb2.OUTCOME_BUDGET_STOPPED, 4)


async def test_a_broken_session_ends_and_meters_its_attempts_and_no_others(loopback: Loopback) -> None:
    broken, other = await loopback.router(), await loopback.router()
    await loopback.started(broken, broken.payload(1), broken.payload(2))
    await loopback.started(other, other.payload(3))
    loopback.engine.step()
    broken.break_off()
    events = await loopback.metering.came(2)
    assert [(event.request_id, event.outcome, event.completion_to) for event in events] == [
        (f"{1:032x}", metering_pb2.OUTCOME_CANCELLED, 1),
        (f"{2:032x}", metering_pb2.OUTCOME_CANCELLED, 1),
    ]
    step = loopback.engine.step()
    assert step is not None
    assert step.participants == [f"{3:032x}/1"]


@pytest.mark.parametrize("window_tokens", [2])
async def test_a_stream_runs_ahead_of_delivery_by_its_window_only(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    assert loopback.engine.step()
    assert loopback.engine.step()
    assert loopback.engine.step() is None
    await router.send(worker_pb2.ExecuteRequest(delivered_refs=[1], delivered_tokens=[1]))
    assert await within(loopback.engine.acknowledged.get()) == (f"{1:032x}/1", 1)
    assert loopback.engine.step()
    assert loopback.engine.step() is None


# --- what is refused


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda start: start.grant.expires_in.FromSeconds(0), common_pb2.ERROR_CODE_ABORTED, "STALE_GRANT"),
        (lambda start: setattr(start.grant, "epoch", 2), common_pb2.ERROR_CODE_ABORTED, "STALE_EPOCH"),
        (
            lambda start: setattr(start.grant, "worker_incarnation", 1),
            common_pb2.ERROR_CODE_ABORTED,
            "WRONG_INCARNATION",
        ),
        (
            lambda start: start.prompt_token_ids.append(300),
            common_pb2.ERROR_CODE_FAILED_PRECONDITION,
            "LARGER_THAN_GRANT",
        ),
        (
            lambda start: setattr(start.sampling, "max_tokens", 21),
            common_pb2.ERROR_CODE_FAILED_PRECONDITION,
            "LARGER_THAN_GRANT",
        ),
        (
            lambda start: setattr(start.attribution, "tenant_id", "globex"),
            common_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "TENANT_MISMATCH",
        ),
        (lambda start: start.sampling.ClearField("seed"), common_pb2.ERROR_CODE_INVALID_ARGUMENT, "BAD_PAYLOAD"),
        (
            lambda start: setattr(start.grant.ref, "request_id", "1"),
            common_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "BAD_PAYLOAD",
        ),
        (lambda start: setattr(start.sampling, "n", 2), common_pb2.ERROR_CODE_INVALID_ARGUMENT, "BAD_PAYLOAD"),
        (lambda start: start.sampling.stop.extend(["x"] * 17), common_pb2.ERROR_CODE_INVALID_ARGUMENT, "BAD_PAYLOAD"),
        (
            lambda start: start.attribution.labels.update({str(n): "" for n in range(17)}),
            common_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "BAD_PAYLOAD",
        ),
        (
            lambda start: setattr(start.continuation, "completion_from", 1),
            common_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "BAD_PAYLOAD",
        ),
        (lambda start: setattr(start.sampling, "logprobs", 1), common_pb2.ERROR_CODE_UNIMPLEMENTED, "NOT_OFFERED"),
        (
            lambda start: setattr(start.sampling.structured_output, "regex", "a*"),
            common_pb2.ERROR_CODE_UNIMPLEMENTED,
            "NOT_OFFERED",
        ),
        (
            lambda start: setattr(start.sampling, "temperature", 3),
            common_pb2.ERROR_CODE_INVALID_ARGUMENT,
            "BAD_REQUEST",
        ),
        (lambda start: start.ClearField("prompt_token_ids"), common_pb2.ERROR_CODE_INVALID_ARGUMENT, "BAD_REQUEST"),
    ],
)
async def test_a_payload_that_cannot_run_is_refused_alone(
    loopback: Loopback, change: Callable[[worker_pb2.Start], Any], code: int, reason: str
) -> None:
    router = await loopback.router()
    bad = router.payload(1)
    change(bad)
    await loopback.started(router, bad, router.payload(2), taken=1)
    (refusal,) = (await router.read()).refusals
    assert (refusal.ref, refusal.error.code, refusal.error.reason) == (1, code, reason)
    loopback.engine.step()
    assert [delta.ref for delta in (await router.read()).step.deltas] == [2]
    assert not loopback.metering.events


async def test_an_attempt_runs_once(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1, max_tokens=1))
    loopback.engine.step()
    await router.read()
    again = router.payload(1)
    again.ref = 2
    await router.start(again)
    assert (await router.read()).refusals[0].error.reason == "ALREADY_RUN"


@pytest.mark.parametrize(
    "request_",
    [
        worker_pb2.ExecuteRequest(),
        worker_pb2.ExecuteRequest(hello=worker_pb2.ExecuteRequest.Hello(), delivered_refs=[1, 2], delivered_tokens=[1]),
    ],
)
async def test_a_session_that_breaks_the_protocol_ends(loopback: Loopback, request_: worker_pb2.ExecuteRequest) -> None:
    call = worker_pb2_grpc.WorkerServiceStub(loopback.channel).Execute()
    await within(call.read())
    await call.write(request_)
    assert await within(call.code()) == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_ref_in_use_ends_the_session_and_its_attempts(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    await router.start(router.payload(1, attempt=2))
    assert await router.ended() == grpc.StatusCode.INVALID_ARGUMENT
    (event,) = await loopback.metering.came(1)
    assert event.attempt == 1


async def test_a_tenant_that_becomes_known_in_time_runs(loopback: Loopback) -> None:
    router = await loopback.router()
    await router.start(router.payload(1, "initech"))
    loopback.policies.changes.put_nowait("initech")
    request = await within(loopback.engine.added.get())
    assert len(request.cache_salt) == 64


# --- the scheduler


async def test_it_registers_with_its_bound_address(loopback: Loopback) -> None:
    register = loopback.register
    assert register.address == loopback.server.address
    assert (register.worker.id, register.model, register.pool) == ("worker-1", "tiny", "gold")
    assert (register.engine, register.capacity.max_num_seqs) == ("simulated", 8)


async def test_a_new_session_begins_with_all_that_the_worker_holds(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    loopback.engine.step()
    await router.read()
    loopback.scheduler.end_session()
    request = await loopback.scheduler.heard_with("running_complete")
    assert [(a.ref, a.started, a.generated_tokens) for a in request.running] == [(ref(1), True, 1)]
    loopback.engine.step()
    assert (await router.read()).step.deltas, "the stream goes on"


async def test_an_eviction_is_handed_over(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    loopback.scheduler.say(scheduler_pb2.AttachResponse(evictions=[ref(1)]))
    (handover,) = (await router.read()).handovers
    assert (handover.ref, handover.reason) == (1, "EVICTED")
    (event,) = await loopback.metering.came(1)
    assert event.outcome == metering_pb2.OUTCOME_HANDED_OVER


async def test_tokens_already_yielded_come_before_the_handover(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    for _ in range(3):
        loopback.engine.step()
    loopback.scheduler.say(scheduler_pb2.AttachResponse(evictions=[ref(1)]))
    received = 0
    while not (response := await router.read()).handovers:
        received += sum(len(delta.token_ids) for delta in response.step.deltas)
    received += sum(len(delta.token_ids) for delta in response.step.deltas)  # these take effect before it
    (event,) = await loopback.metering.came(1)
    assert received == event.completion_to == 3


async def test_progress_and_state_are_reported_by_the_clock(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    for _ in range(3):
        loopback.engine.step()
    loopback.clock.advance(1.0)
    request = await loopback.scheduler.heard_with("progress")
    assert [(p.ref, p.generated_tokens, p.prefilled) for p in request.progress] == [(ref(1), 3, True)]
    assert (request.engine.running, request.engine.healthy) == (1, True)


# --- metering


async def test_events_are_sent_again_to_a_metering_that_comes_back(loopback: Loopback) -> None:
    metering = loopback.metering
    metering.acknowledging = False
    router = await loopback.router()
    await loopback.started(router, router.payload(1, max_tokens=1), router.payload(2, max_tokens=1))
    loopback.engine.step()
    await metering.came(2)
    await loopback.restart_metering()
    await loopback.started(router, router.payload(3, max_tokens=1))
    loopback.engine.step()
    events = await metering.came(5)
    assert metering.sessions == [[1, 2], [1, 2, 3]]
    assert [int(event.request_id, 16) for event in events] == [1, 2, 1, 2, 3]


async def test_no_more_events_are_under_way_than_metering_allows(loopback: Loopback) -> None:
    loopback.metering.window = 1
    loopback.metering.acknowledging = False
    await loopback.metering.opened(1)
    loopback.metering.end_session()
    await loopback.metering.opened(2)
    router = await loopback.router()
    await loopback.started(router, router.payload(1, max_tokens=1), router.payload(2, max_tokens=1))
    loopback.engine.step()
    assert len(await loopback.metering.came(1)) == 1
    loopback.metering.acknowledging = True
    loopback.metering.acknowledge(1)
    await loopback.metering.came(2)
    assert loopback.metering.sessions[-1] == [1, 2]


async def test_a_worker_that_cannot_record_says_so_and_recovers(loopback: Loopback) -> None:
    loopback.metering.acknowledging = False
    router = await loopback.router()
    payloads = [router.payload(n, max_tokens=1) for n in range(1, 9)]
    await loopback.started(router, *payloads)
    loopback.engine.step()
    assert len((await router.read()).step.deltas) == 8
    await router.start(router.payload(9))
    assert (await router.read()).refusals[0].error.reason == "METERING_BEHIND"
    await healthy(loopback, Health.NOT_SERVING)
    await loopback.metering.came(8)
    loopback.metering.acknowledging = True
    loopback.metering.acknowledge(8)
    await healthy(loopback, Health.SERVING)
    await loopback.started(router, router.payload(10))


class TestSpooled:
    """With a spool on the disk."""

    @pytest.fixture
    def spool_dir(self, tmp_path: Path) -> Path:
        return tmp_path / "spool"

    async def test_an_attempt_is_on_the_disk_before_it_runs_and_gone_when_metering_has_it(
        self, loopback: Loopback, spool_dir: Path
    ) -> None:
        def spooled() -> list[str]:
            (segment,) = spool_dir.glob("segment-*")
            return [str(event.id) for event in replay(segment.read_bytes()).events]

        router = await loopback.router()
        await loopback.started(router, router.payload(1, max_tokens=1), router.payload(2))
        assert spooled() == [f"{1:032x}/1", f"{2:032x}/1"]
        loopback.engine.step()
        await loopback.metering.came(1)
        async with asyncio.timeout(60):
            while len(spooled()) == 2:
                await asyncio.sleep(0)
        assert spooled() == [f"{2:032x}/1"]

    async def test_a_full_disk_refuses_and_what_runs_goes_on(
        self, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(directory: SpoolDirectory, records: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        router = await loopback.router()
        await loopback.started(router, router.payload(1, max_tokens=2))
        with monkeypatch.context() as disk:
            disk.setattr(SpoolDirectory, "append", full)
            disk.setattr(SpoolDirectory, "begin_segment", full)
            await router.start(router.payload(2))
            (refusal,) = (await router.read()).refusals
            assert (refusal.error.code, refusal.error.reason) == (
                common_pb2.ERROR_CODE_UNAVAILABLE,
                "SPOOL_UNAVAILABLE",
            )
            await healthy(loopback, Health.NOT_SERVING)
            for tokens in (1, 2):
                loopback.engine.step()
                assert (await router.read()).step.deltas[0].completion_tokens == tokens
            await router.start(router.payload(3))
            assert (await router.read()).refusals[0].error.reason == "SPOOL_UNAVAILABLE"
        check = health_pb2_grpc.HealthStub(loopback.channel).Check
        async with asyncio.timeout(60):
            while (await check(health_pb2.HealthCheckRequest(service=FULL_NAME))).status != Health.SERVING:
                loopback.clock.advance(RETRY_S)
        assert len(await loopback.metering.came(1)) == 1
        await loopback.started(router, router.payload(4))


async def test_sessions_are_bounded(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "MAX_SESSIONS", 2)
    first, _ = await loopback.router(), await loopback.router()
    call = worker_pb2_grpc.WorkerServiceStub(loopback.channel).Execute()
    assert await within(call.code()) == grpc.StatusCode.RESOURCE_EXHAUSTED
    first.break_off()
    async with asyncio.timeout(60):
        while True:
            again = worker_pb2_grpc.WorkerServiceStub(loopback.channel).Execute()
            if isinstance(await again.read(), worker_pb2.ExecuteResponse):
                break


# --- the end


async def test_a_drain_refuses_tells_the_scheduler_and_hands_over(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    stub = worker_pb2_grpc.WorkerServiceStub(loopback.channel)
    request = worker_pb2.DrainRequest()
    request.grace.FromSeconds(5)
    assert (await stub.Drain(request)).running == 1
    assert await loopback.scheduler.heard("draining")
    await router.start(router.payload(2))
    assert (await router.read()).refusals[0].error.reason == "DRAINING"
    assert (await stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())).draining
    await healthy(loopback, Health.NOT_SERVING)
    loopback.clock.advance(5.0)
    assert (await router.read()).handovers[0].reason == "DRAINING"
    assert (await loopback.metering.came(1))[0].outcome == metering_pb2.OUTCOME_HANDED_OVER


async def test_a_process_that_is_told_to_stop_drains_first(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    stopping = asyncio.create_task(loopback.server.drain(0.0))
    await asyncio.sleep(0)
    loopback.clock.advance(TICK_S)
    assert (await router.read()).handovers[0].reason == "DRAINING"
    loopback.clock.advance(LAST_WORDS_S)
    await within(stopping)
    assert await router.ended() is not grpc.StatusCode.OK
    assert (await loopback.metering.came(1))[0].outcome == metering_pb2.OUTCOME_HANDED_OVER


async def test_a_dead_engine_hands_over_and_ends_the_process(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, dead_components: list[str]
) -> None:
    killed: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.put_nowait(pid))
    monkeypatch.setattr(tasks, "_on_failure", tasks._stop_process)
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    loopback.engine.fail("gone")
    assert (await router.read()).handovers[0].reason == "ENGINE_FAILED"
    loopback.clock.advance(TICK_S)
    assert await within(killed.get()) == os.getpid()
    assert dead_components == ["time"]
    dead_components.clear()
    assert (await loopback.metering.came(1))[0].outcome == metering_pb2.OUTCOME_HANDED_OVER


async def test_it_describes_itself(loopback: Loopback) -> None:
    router = await loopback.router()
    await loopback.started(router, router.payload(1))
    loopback.engine.step()
    stub = worker_pb2_grpc.WorkerServiceStub(loopback.channel)
    described = await stub.DescribeWorker(worker_pb2.DescribeWorkerRequest())
    assert (described.worker, described.model, described.engine) == (loopback.peer, "tiny", "simulated")
    assert (described.steps, described.busy_time.ToNanoseconds()) == (1, 10_000_000)
    assert described.state.running == 1


@pytest.mark.parametrize("seconds", [-1, 3601])
async def test_a_drain_has_a_bounded_grace(loopback: Loopback, seconds: int) -> None:
    request = worker_pb2.DrainRequest()
    request.grace.FromSeconds(seconds)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker_pb2_grpc.WorkerServiceStub(loopback.channel).Drain(request)
    assert "grace" in from_rpc_error(caught.value).message
