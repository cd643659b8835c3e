"""What comes between a request and its regular end, in the whole router over loopback."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.policy.messages import to_pb_key, to_pb_tenant
from forebay.rpc.status import from_pb_duration

from .conftest import METADATA, RouterWorld, options_for
from .peers import soon
from .samples import ACME, ACME_KEY
from .streams import failure, rest, started


async def test_a_client_that_cancels_stops_the_worker_and_pays_what_was_used(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 0, [1], "a")
    await soon(call.read())
    call.cancel()
    cancel = await soon(world.worker.cancels.get())
    assert (cancel.ref, cancel.reason, cancel.delivered_tokens) == (start.ref, common_pb2.FINISH_REASON_CANCELLED, 1)
    assert world.quota.settles.empty(), "the worker's count is waited for"
    world.worker.finish(start, 1, common_pb2.FINISH_REASON_CANCELLED)
    settle = await soon(world.quota.settles.get())
    assert (settle.started, settle.completion_tokens) == (True, 1)


async def test_a_client_that_cancels_in_the_queue_is_withdrawn_and_its_late_grant_declined(world: RouterWorld) -> None:
    workers, world.scheduler.workers = world.scheduler.workers, []
    await world.start()
    call = world.stream()
    submission = await soon(world.scheduler.submissions.get())
    call.cancel()
    assert await soon(world.scheduler.cancellations.get()) == submission.ref
    assert not (await soon(world.quota.settles.get())).started
    world.scheduler.workers = workers
    world.scheduler.grant(submission)
    assert await soon(world.scheduler.declines.get()) == submission.ref
    assert world.worker.starts.empty()


@pytest.mark.slow
async def test_a_deadline_ends_what_runs(world: RouterWorld) -> None:
    await world.start()
    call = world.stream(timeout=1)
    start = await soon(world.worker.starts.get())
    assert 0 < from_pb_duration(start.remaining) <= 1
    error = await failure(call)
    assert error.code is Code.DEADLINE_EXCEEDED
    await soon(world.worker.cancels.get())
    world.worker.finish(start, 0, common_pb2.FINISH_REASON_CANCELLED)
    await soon(world.quota.settles.get())


@pytest.mark.parametrize("last_word", ["finish", "handover", "break"])
async def test_a_spent_budget_ends_the_answer_with_all_the_text_of_its_tokens(
    world: RouterWorld, last_word: str
) -> None:
    await world.start()
    call = world.stream()
    request_id = (await started(call)).request_id
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 0, [1, 2], "a", held="b")
    assert (await soon(call.read())).delta.text == "a"
    assert world.quota.outbox is not None
    world.quota.outbox.message.renewals.stop.append(request_id)
    world.quota.outbox.flush()
    assert (await soon(world.worker.cancels.get())).reason == common_pb2.FINISH_REASON_BUDGET
    match last_word:
        case "finish":
            world.worker.finish(start, 2, common_pb2.FINISH_REASON_BUDGET)
        case "handover":
            world.worker.hand_over(start.ref)
        case _:
            world.worker.break_off()
    tokens, text, finished = await rest(call, seen=2)
    assert (tokens, text) == ([], "b"), "what might have begun a stop string does not any more"
    assert finished.finish_reasons == [common_pb2.FINISH_REASON_BUDGET]
    assert (await soon(world.quota.settles.get())).completion_tokens == 2


async def test_a_broken_worker_is_replaced_and_the_client_sees_one_stream(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    first = await soon(world.worker.starts.get())
    world.worker.say(first.ref, 0, [1, 2], "ab", held="\ufffd")
    await soon(call.read())
    await world.worker.server.kill()

    assert (await soon(world.scheduler.cancellations.get())).attempt == 1
    await soon(world.scheduler.submissions.get())
    again = await soon(world.scheduler.submissions.get())
    assert (again.ref.attempt, again.delivered_tokens, list(again.excluded_workers)) == (2, 2, ["w1"])
    assert (again.prompt_tokens, again.max_tokens) == (len(first.prompt_token_ids) + 2, 14)
    second = await soon(world.other.starts.get())
    assert list(second.prompt_token_ids) == list(first.prompt_token_ids)
    assert second.sampling == first.sampling, "the same seed, and max_tokens from the first attempt on"
    assert list(second.continuation.token_ids) == [1, 2]
    assert (second.continuation.held_text, second.continuation.completion_from) == ("\ufffd", 2)

    world.other.say(second.ref, 2, [3], "c")
    world.other.finish(second, 3)
    tokens, text, finished = await rest(call, seen=2)
    assert (tokens, text) == ([3], "c")
    assert finished.usage.completion_tokens == 3
    assert (await soon(world.quota.settles.get())).completion_tokens == 3


async def test_a_handover_and_a_stale_grant_lead_on(world: RouterWorld) -> None:
    await world.start()
    call = world.stream()
    await started(call)
    first = await soon(world.worker.starts.get())
    world.worker.refuse(first.ref, MeshError(Code.ABORTED, "STALE_GRANT", "too late"))
    assert (await soon(world.scheduler.declines.get())).attempt == 1
    second = await soon(world.worker.starts.get())
    assert second.grant.ref.attempt == 2
    assert world.worker.sessions == 1, "the session is kept"
    world.worker.say(second.ref, 0, [1], "a")
    world.worker.hand_over(second.ref)
    third = await soon(world.other.starts.get())
    assert (third.grant.ref.attempt, list(third.continuation.token_ids)) == (3, [1])
    world.other.finish(third, 1)
    assert (await rest(call))[:2] == ([1], "a")


async def test_the_only_worker_takes_the_request_up_again_in_its_next_life(world: RouterWorld) -> None:
    world.scheduler.workers = [world.worker]
    await world.start()
    call = world.stream()
    await started(call)
    first = await soon(world.worker.starts.get())
    world.worker.say(first.ref, 0, [1], "a")
    await soon(call.read())
    await world.worker.server.kill()
    for _ in range(2):
        submission = await soon(world.scheduler.submissions.get())
    assert (submission.ref.attempt, list(submission.excluded_workers)) == (2, ["w1"])

    # The scheduler restarts, too: to it there is but the new life, and nothing against that.
    await world.scheduler.server.kill()
    world.worker.incarnation = 2
    await world.worker.server.start()
    await world.scheduler.server.start()
    again = await soon(world.scheduler.submissions.get())
    assert (again.ref, list(again.excluded_workers)) == (submission.ref, [])
    assert again.HasField("waited"), "it keeps its place"
    second = await soon(world.worker.starts.get())
    assert (second.grant.worker_incarnation, list(second.continuation.token_ids)) == (2, [1])
    world.worker.say(second.ref, 1, [2], "b")
    world.worker.finish(second, 2)
    assert (await rest(call, seen=1))[:2] == ([2], "b")


async def test_a_suspended_tenant_and_a_revoked_key_lose_what_runs(world: RouterWorld) -> None:
    await world.start()
    for change, reason in (
        (
            quota_pb2.WatchPoliciesResponse(version=2, tenants=[to_pb_tenant(replace(ACME, suspended=True))]),
            "TENANT_SUSPENDED",
        ),
        (quota_pb2.WatchPoliciesResponse(version=4, keys=[to_pb_key(replace(ACME_KEY, revoked=True))]), "KEY_REVOKED"),
    ):
        call = world.stream()
        await started(call)
        start = await soon(world.worker.starts.get())
        world.worker.say(start.ref, 0, [1, 2], "ab")
        world.quota.changes.put_nowait(change)
        await soon(world.worker.cancels.get())
        world.worker.finish(start, 2, common_pb2.FINISH_REASON_CANCELLED)
        error = await failure(call)
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, reason)
        assert (await soon(world.quota.settles.get())).completion_tokens == 2
        world.quota.changes.put_nowait(quota_pb2.WatchPoliciesResponse(version=3, tenants=[to_pb_tenant(ACME)]))
        await let_in(world)


async def let_in(world: RouterWorld) -> None:
    """Returns once the router has heard that the tenant is no longer suspended."""
    count = router_pb2.CountTokensRequest(prompt=options_for().prompt)
    while True:
        try:
            await soon(world.client.CountTokens(count, metadata=METADATA))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return  # the key's turn
            await asyncio.sleep(0)
        else:
            return


@pytest.mark.slow
async def test_a_client_that_reads_nothing_loses_its_request(world: RouterWorld) -> None:
    await world.start(slow_client_s=0.2)
    # Without room in the client for what it does not read, as behind a slow line.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
    async with grpc.aio.insecure_channel(world.server.address, options=options) as channel:
        request = router_pb2.StreamGenerateRequest(options=options_for())
        call = router_pb2_grpc.RouterServiceStub(channel).StreamGenerate(request, metadata=METADATA)
        await started(call)
        start = await soon(world.worker.starts.get())
        for token in range(4):
            world.worker.say(start.ref, token, [token], "x" * 100_000)
        cancel = await soon(world.worker.cancels.get())
        assert cancel.ref == start.ref
        world.worker.finish(start, 4, common_pb2.FINISH_REASON_CANCELLED)
        settle = await soon(world.quota.settles.get())
        assert (settle.started, settle.completion_tokens) == (True, 4)
        # Another one on another connection is not concerned; and when it reads at last, it hears why.
        other = world.stream()
        await started(other)
        world.worker.finish(await soon(world.worker.starts.get()), 0)
        await rest(other)
        error = await failure(call)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW")
