"""The whole router over loopback, among fake quota, scheduler, workers and metering."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.router.v1 import router_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.policy.messages import to_pb_key
from forebay.router.domain.ask import Message
from forebay.router.hf_tokenizer import HfTokenizer
from forebay.router.usage_cursor import UsageCursors
from forebay.router.usage_servicer import MAX_STREAMS

from .conftest import METADATA, RouterWorld, options_for
from .peers import soon
from .samples import ACME, ACME_KEY, KEY, PEPPER
from .streams import failure, rest, started


async def test_one_request_through_everybody(world: RouterWorld) -> None:
    await world.start()
    call = world.stream(
        client_request_id="mine",
        labels={"team": "a"},
        sampling=common_pb2.Sampling(max_tokens=5, temperature=0, stop=["x"]),
    )
    first = await started(call)
    prompt = HfTokenizer(world._model).encode_chat([Message("user", "hello")])
    assert (first.model, first.prompt_tokens) == ("tiny", len(prompt))

    reserve = await soon(world.quota.reserves.get())
    assert (reserve.request_id, reserve.tenant_id, reserve.model) == (first.request_id, "acme", "tiny")
    assert (reserve.prompt_tokens, reserve.max_completion_tokens) == (len(prompt), 5)

    submission = await soon(world.scheduler.submissions.get())
    assert submission.ref == scheduler_pb2.AttemptRef(request_id=first.request_id, attempt=1)
    assert (submission.prompt_tokens, submission.max_tokens, submission.weight_milli) == (len(prompt), 5, 3000)
    assert len(submission.prefix_hashes) == len(prompt) // submission.prefix_block_tokens
    assert 0 < submission.remaining.seconds <= 60
    assert not submission.HasField("waited")

    start = await soon(world.worker.starts.get())
    assert list(start.prompt_token_ids) == prompt
    assert start.grant.ref == submission.ref
    assert (start.sampling.max_tokens, start.sampling.temperature, list(start.sampling.stop)) == (5, 0, ["x"])
    assert start.sampling.HasField("seed")
    assert not start.sampling.HasField("top_p")
    assert not start.HasField("continuation")
    assert (start.attribution.tenant_id, start.attribution.plan) == ("acme", "enterprise")
    assert (start.attribution.client_request_id, dict(start.attribution.labels)) == ("mine", {"team": "a"})

    world.worker.say(start.ref, 0, [10, 11], "Hel")
    world.worker.say(start.ref, 2, [12], "lo")
    world.worker.finish(start, 3)
    tokens, text, finished = await rest(call)
    assert (tokens, text) == ([10, 11, 12], "Hello")
    assert list(finished.finish_reasons) == [common_pb2.FINISH_REASON_STOP]
    usage = common_pb2.TokenUsage(prompt_tokens=len(prompt), cached_tokens=1, completion_tokens=3)
    assert finished.usage == usage
    assert finished.HasField("time_to_first_token")

    settle = await soon(world.quota.settles.get())
    assert (settle.request_id, settle.tenant_id, settle.started) == (first.request_id, "acme", True)
    assert (settle.prompt_tokens, settle.completion_tokens, settle.cached_tokens) == (len(prompt), 3, 1)
    assert settle.gpu_time.nanos == 250_000_000


async def test_the_adapter_is_the_one_asked_for_or_the_tenants_own(world: RouterWorld) -> None:
    world.quota.tenants = [replace(ACME, adapters=("support", "sales"), default_adapter="support")]
    await world.start()
    for asked, meant in (("", "support"), ("sales", "sales")):
        call = world.stream(adapter=asked)
        await started(call)
        submission = await soon(world.scheduler.submissions.get())
        assert submission.adapter == meant
        start = await soon(world.worker.starts.get())
        world.worker.finish(start, 0)
        await rest(call)


async def test_an_answer_that_the_scheduler_shortens_says_so(world: RouterWorld) -> None:
    await world.start()
    world.scheduler.under_pressure = True
    call = world.stream(sampling=common_pb2.Sampling(max_tokens=8), least_max_tokens=3)
    await started(call)
    first = await soon(world.worker.starts.get())
    assert first.sampling.max_tokens == 3
    world.worker.say(first.ref, 0, [10], "a")
    world.worker.hand_over(first.ref, "EVICTED")
    for left, worker_start in ((3, None), (2, await soon(world.worker.starts.get()))):
        submission = await soon(world.scheduler.submissions.get())
        assert (submission.least_max_tokens, list(submission.excluded_workers)) == (left, [])
        if worker_start is not None:
            assert (submission.max_tokens, worker_start.sampling.max_tokens) == (2, 3)
            world.worker.say(worker_start.ref, 1, [11, 12], "bc")
            world.worker.finish(worker_start, 3, common_pb2.FINISH_REASON_LENGTH)
    tokens, _, finished = await rest(call)
    assert (tokens, finished.shortened) == ([10, 11, 12], True)
    assert list(finished.finish_reasons) == [common_pb2.FINISH_REASON_LENGTH]


@pytest.mark.parametrize("least", [0, 8])
async def test_what_may_not_be_shortened_is_not(world: RouterWorld, least: int) -> None:
    await world.start()
    world.scheduler.under_pressure = True
    call = world.client.Generate(
        router_pb2.GenerateRequest(
            options=options_for(sampling=common_pb2.Sampling(max_tokens=8), least_max_tokens=least)
        ),
        metadata=METADATA,
    )

    async def engine() -> None:
        start = await world.worker.starts.get()
        assert start.sampling.max_tokens == 8
        world.worker.say(start.ref, 0, [1, 2], "ab")
        world.worker.finish(start, 2)

    await soon(engine())
    assert not (await call).shortened


async def test_a_unary_answer_is_the_stream_gathered(world: RouterWorld) -> None:
    await world.start()
    call = world.client.Generate(router_pb2.GenerateRequest(options=options_for()), metadata=METADATA)

    async def engine() -> None:
        start = await world.worker.starts.get()
        assert start.sampling.max_tokens == 16, "the model's default"
        world.worker.say(start.ref, 0, [1, 2], "ab")
        world.worker.finish(start, 2, common_pb2.FINISH_REASON_LENGTH)

    await soon(engine())
    answer = await call
    (choice,) = answer.choices
    assert (choice.text, list(choice.token_ids), choice.finish_reason) == (
        "ab",
        [1, 2],
        common_pb2.FINISH_REASON_LENGTH,
    )
    assert answer.usage.completion_tokens == 2


async def test_a_refusal_by_quota_names_the_limits_and_when_to_come_back(world: RouterWorld) -> None:
    violation = QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 20)
    world.quota.refusal = MeshError(
        Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "no room", retry_after=7, quota_violations=[violation]
    )
    await world.start()
    error = await failure(world.stream())
    assert (error.code, error.reason, error.retry_after) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 7)
    assert error.quota_violations == (violation,)
    assert world.scheduler.submissions.empty()
    assert world.quota.settles.empty()


async def test_a_rejection_by_the_scheduler_gives_the_reservation_back(world: RouterWorld) -> None:
    world.scheduler.workers.clear()
    await world.start()
    call = world.stream()
    submission = await soon(world.scheduler.submissions.get())
    world.scheduler.reject(submission.ref, MeshError(Code.UNAVAILABLE, "QUEUE_FULL", "try later", retry_after=2))
    error = await failure(call)
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "QUEUE_FULL", 2)
    settle = await soon(world.quota.settles.get())
    assert (settle.started, settle.prompt_tokens, settle.completion_tokens) == (False, 0, 0)


async def test_a_deadline_that_cannot_be_met_is_refused_early(world: RouterWorld) -> None:
    await world.start()
    error = await failure(world.stream(timeout=0.09))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert world.quota.reserves.empty()


async def test_a_gap_in_the_stream_is_never_passed_on(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 1, [2], "b")
    assert (await soon(world.worker.cancels.get())).ref == start.ref
    world.worker.finish(start, 0, common_pb2.FINISH_REASON_CANCELLED)
    error = await failure(call)
    assert error.reason == "STREAM_OUT_OF_ORDER"


@pytest.mark.slow
async def test_a_client_that_does_not_read_holds_up_nobody(world: RouterWorld) -> None:
    await world.start(flushers=1)
    slow, quick = world.stream(), world.stream()
    streams = {}
    for call in (slow, quick):
        request_id = (await started(call)).request_id
        streams[request_id] = call
    starts = {start.grant.ref.request_id: start for start in [await soon(world.worker.starts.get()) for _ in streams]}
    (slow_start, quick_start) = (starts[request_id] for request_id in streams)
    big = "x" * (1 << 20)  # more than gRPC takes from a writer for a reader that does not read
    for position in range(12):
        world.worker.say(slow_start.ref, position, [position], big)
    world.worker.say(quick_start.ref, 0, [7], "quick")
    world.worker.finish(quick_start, 1)
    assert (await soon(rest(quick)))[:2] == ([7], "quick")
    world.worker.finish(slow_start, 12)
    tokens, text, _ = await soon(rest(slow))
    assert tokens == list(range(12))
    assert len(text) == 12 << 20


async def test_delivery_is_reported_to_an_engine_that_waits_for_it(world: RouterWorld) -> None:
    world.worker.window_tokens = 8
    await world.start()
    call = world.stream()
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 0, [1, 2], "ab")
    assert await soon(world.worker.delivered.get()) == (start.ref, 2)
    world.worker.finish(start, 2)
    await started(call)
    assert (await rest(call))[0] == [1, 2]


async def test_a_settlement_is_repeated_until_quota_has_it(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    start = await soon(world.worker.starts.get())
    await world.quota.server.kill()
    world.worker.say(start.ref, 0, [1], "a")
    world.worker.finish(start, 1)
    assert (await soon(rest(call)))[0] == [1], "the answer does not wait for quota"
    assert world.quota.settles.empty()
    await world.quota.server.start()
    settle = await soon(world.quota.settles.get())
    assert (settle.request_id, settle.completion_tokens) == (start.grant.ref.request_id, 1)


async def test_a_request_waits_for_quota_to_come_back(world: RouterWorld) -> None:
    await world.start()
    assert (await world.client.ListModels(router_pb2.ListModelsRequest(), metadata=METADATA)).models
    await world.quota.server.kill()
    call = world.stream()
    await world.quota.server.start()
    start = await soon(world.worker.starts.get())
    world.worker.finish(start, 0)
    await started(call)
    await rest(call)


async def test_quota_that_stays_away_is_unavailable_and_what_it_may_hold_is_given_back(world: RouterWorld) -> None:
    await world.start(dependency_wait_s=0.05)
    world.quota.silent = True
    error = await failure(world.stream())
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "QUOTA_UNAVAILABLE")
    reserve = await soon(world.quota.reserves.get())
    settle = await soon(world.quota.settles.get())
    assert (settle.request_id, settle.started) == (reserve.request_id, False)


async def test_a_scheduler_that_restarts_is_told_what_is_held_and_queued(world: RouterWorld) -> None:
    await world.start()
    running = world.stream()
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 0, [1], "a")
    await started(running)
    await soon(running.read())
    workers, world.scheduler.workers = world.scheduler.workers, []
    queued = world.stream()
    await started(queued)
    hello = await soon(world.scheduler.hellos.get())
    assert hello.held_complete
    assert not hello.held
    for _ in range(2):
        submission = await soon(world.scheduler.submissions.get())
    await world.scheduler.server.kill()
    await world.scheduler.server.start()

    hello = await soon(world.scheduler.hellos.get())
    (held,) = hello.held
    assert held.ref == start.grant.ref
    assert held.state == scheduler_pb2.HeldAttempt.STATE_RUNNING
    assert (held.worker_id, held.submission.max_tokens) == ("w1", 16)
    again = await soon(world.scheduler.submissions.get())
    assert again.ref == submission.ref
    assert again.HasField("waited")
    assert hello.held_complete

    world.scheduler.workers = workers
    world.scheduler.grant(again)
    second = await soon(world.worker.starts.get())
    for call, payload, tokens in ((running, start, 1), (queued, second, 0)):
        world.worker.finish(payload, tokens)
        await rest(call)


async def test_a_throttled_request_says_when_it_may_start(world: RouterWorld) -> None:
    world.quota.start_after_s = 1.5
    world.scheduler.workers.clear()
    await world.start()
    call = world.stream()
    submission = await soon(world.scheduler.submissions.get())
    assert 1 <= submission.start_after.seconds + submission.start_after.nanos / 1e9 <= 1.5
    call.cancel()


async def test_no_trace_header_refuses_a_request(world: RouterWorld) -> None:
    await world.start()
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    long = ",".join(f"vendor{n}={'v' * 40}" for n in range(30))
    for headers in (
        (("traceparent", parent), ("tracestate", long)),
        (("traceparent", parent), ("tracestate", "a=" + "v" * 600)),
        (("traceparent", parent), ("tracestate", "=,;"), ("baggage", "=;=," * 500)),
        (("traceparent", "00-" + "f" * 2_000),),
        (("tracestate", long),),
    ):
        call = world.client.StreamGenerate(
            router_pb2.StreamGenerateRequest(options=options_for()), metadata=(*METADATA, *headers)
        )
        submission = await soon(world.scheduler.submissions.get())
        assert len(submission.trace.tracestate) <= 512
        world.worker.finish(await soon(world.worker.starts.get()), 0)
        while await soon(call.read()):
            pass


async def test_a_key_comes_once_and_in_any_case_of_its_scheme(world: RouterWorld) -> None:
    await world.start()
    for scheme in ("bearer", "BEARER ", "Bearer"):
        await world.client.ListModels(router_pb2.ListModelsRequest(), metadata=(("authorization", f"{scheme} {KEY}"),))
    for metadata in ((*METADATA, *METADATA), (*METADATA, ("authorization", "Basic x"))):
        error = await failure(world.client.ListModels(router_pb2.ListModelsRequest(), metadata=metadata))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "SEVERAL_KEYS")
        assert "send `authorization: Bearer fb_...` once" in error.message
    basic = world.client.ListModels(router_pb2.ListModelsRequest(), metadata=(("authorization", f"Basic {KEY}"),))
    assert (await failure(basic)).reason == "UNKNOWN_KEY"


async def test_who_is_not_known_is_told_nothing_and_who_is_may_count_and_list(world: RouterWorld) -> None:
    await world.start()
    for metadata in ((), (("authorization", "Bearer fb_nothing"),)):
        call = world.client.StreamGenerate(router_pb2.StreamGenerateRequest(options=options_for()), metadata=metadata)
        error = await failure(call)
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "UNKNOWN_KEY")
    (model,) = (await world.client.ListModels(router_pb2.ListModelsRequest(), metadata=METADATA)).models
    assert (model.name, model.context_tokens, model.default_max_tokens) == ("tiny", 4096, 16)
    too_many = world.client.ListModels(router_pb2.ListModelsRequest(page_size=1001), metadata=METADATA)
    assert (await failure(too_many)).field_violations[0].field == "page_size"
    count = await world.client.CountTokens(
        router_pb2.CountTokensRequest(prompt=options_for().prompt), metadata=METADATA
    )
    assert count.prompt_tokens + count.remaining_context == 4096
    embed = world.client.Embed(router_pb2.EmbedRequest(texts=["a"]), metadata=METADATA)
    assert (await failure(embed)).code is Code.UNIMPLEMENTED
    bad = world.stream(sampling=common_pb2.Sampling(temperature=9, top_p=9))
    fields = [violation.field for violation in (await failure(bad)).field_violations]
    assert fields == ["sampling.temperature", "sampling.top_p"]


async def test_usage_is_the_callers_own_whatever_it_asks_for(world: RouterWorld) -> None:
    await world.start()
    theirs = metering_pb2.UsageFilter(tenant_ids=["globex", "acme"], models=["tiny"])
    request = router_pb2.StreamUsageRequest(filter=theirs)
    (response,) = [response async for response in world.usage.StreamUsage(request, metadata=METADATA)]
    assert (response.entries[0].position, len(response.cursor)) == (0, 89)
    again = router_pb2.StreamUsageRequest(filter=theirs, cursor=response.cursor)
    (response,) = [response async for response in world.usage.StreamUsage(again, metadata=METADATA)]
    assert world.metering.cursors == ["", "v1:1"]
    totals = await world.usage.SumUsage(router_pb2.SumUsageRequest(filter=theirs), metadata=METADATA)
    assert totals.totals[0].requests == 3
    assert world.metering.filters == [metering_pb2.UsageFilter(tenant_ids=["acme"], models=["tiny"])] * 3
    changed = response.cursor[:-1] + ("Q" if response.cursor[-1] == "A" else "A")
    for cursor in ("bad", "v1:1", changed, UsageCursors(PEPPER).seal("globex", "v1:1")):
        bad = world.usage.StreamUsage(router_pb2.StreamUsageRequest(cursor=cursor), metadata=METADATA)
        assert (await failure(bad)).reason == "BAD_CURSOR"
    following = world.usage.StreamUsage(router_pb2.StreamUsageRequest(follow=True), metadata=METADATA)
    await soon(following.read())
    await soon(world.metering.following.wait())
    following.cancel()
    await soon(world.metering.left.wait())


async def test_who_follows_its_usage_is_shown_nothing_once_its_key_is_revoked(world: RouterWorld) -> None:
    await world.start()
    following = world.usage.StreamUsage(router_pb2.StreamUsageRequest(follow=True), metadata=METADATA)
    await soon(following.read())
    world.metering.entries.put_nowait(metering_pb2.LedgerEntry(position=2, cost_nano_usd=5))
    assert (await soon(following.read())).entries[0].cost_nano_usd == 5
    revoked = to_pb_key(replace(ACME_KEY, revoked=True))
    world.quota.changes.put_nowait(quota_pb2.WatchPoliciesResponse(version=2, keys=[revoked]))
    count = router_pb2.CountTokensRequest(prompt=options_for().prompt)
    while await soon(world.client.CountTokens(count, metadata=METADATA).code()) is grpc.StatusCode.OK:
        pass
    world.metering.entries.put_nowait(metering_pb2.LedgerEntry(position=3))
    error = await failure(following)
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "KEY_REVOKED")
    await soon(world.metering.left.wait())


async def test_a_ledger_that_is_away_is_said_so_without_its_address(world: RouterWorld) -> None:
    await world.start()
    await world.metering.server.kill()
    for call in (
        world.usage.StreamUsage(router_pb2.StreamUsageRequest(), metadata=METADATA),
        world.usage.SumUsage(router_pb2.SumUsageRequest(), metadata=METADATA),
    ):
        error = await failure(call)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "USAGE_UNAVAILABLE")
        assert "127.0.0.1" not in error.message


async def test_a_tenant_follows_its_usage_a_few_times_at_once(world: RouterWorld) -> None:
    await world.start()
    follow = router_pb2.StreamUsageRequest(follow=True)
    streams = [world.usage.StreamUsage(follow, metadata=METADATA) for _ in range(MAX_STREAMS)]
    for stream in streams:
        await soon(stream.read())
    error = await failure(world.usage.StreamUsage(follow, metadata=METADATA))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    streams[0].cancel()
    await soon(world.metering.left.wait())
    again = world.usage.StreamUsage(follow, metadata=METADATA)
    await soon(again.read())


async def test_the_router_serves_once_it_has_met_quota_and_scheduler(world: RouterWorld) -> None:
    await world.start(peers=False)
    health = health_pb2_grpc.HealthStub(world.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="forebay.api.router.v1.RouterService"))
    assert (await soon(watch.read())).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await world.quota.server.start()
    await world.scheduler.server.start()
    assert (await soon(watch.read())).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
