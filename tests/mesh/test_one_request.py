"""One request end to end, through five processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.client import ForebayClient, UsageEntry
from forebay.client.messages import to_pb_options
from forebay.errors import Code, MeshError
from forebay.rpc.status import from_rpc_error
from forebay.testing.processes import MeshProcesses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mesh")]

SERVICES = {"router", "quota", "scheduler", "worker", "metering"}


@pytest.fixture
async def acme(mesh: MeshProcesses) -> AsyncIterator[ForebayClient]:
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        yield client


async def entry_of(client: ForebayClient, request_id: str) -> UsageEntry:
    """Waits for the one row that a request has in the ledger."""
    async with asyncio.timeout(60):
        async for page in client.usage(request_ids=[request_id], follow=True):
            if page.entries:
                (entry,) = page.entries
                return entry
    raise AssertionError("the usage stream ended")


async def test_three_tenants_get_text_and_rows(mesh: MeshProcesses) -> None:
    for tenant, plan in (("acme", "enterprise"), ("globex", "standard"), ("initech", "basic")):
        async with ForebayClient(mesh.router_address(), mesh.key(tenant)) as client:
            stream = client.stream(f"What does {tenant} mill?", max_tokens=12)
            deltas = [delta async for delta in stream]
            assert stream.started is not None
            assert stream.finished is not None
            tokens = [token for delta in deltas for token in delta.token_ids]
            assert [delta.position for delta in deltas] == [
                sum(len(d.token_ids) for d in deltas[:n]) for n in range(len(deltas))
            ]
            assert len(tokens) == stream.finished.usage.completion > 0
            assert "".join(delta.text for delta in deltas).strip()
            entry = await entry_of(client, stream.started.request_id)
            assert (entry.tenant, entry.plan, entry.outcome) == (tenant, plan, "completed")
            assert entry.completion_tokens == len(tokens)
            assert entry.prompt_tokens == stream.started.prompt_tokens
            assert entry.cost_nano_usd > 0
            assert entry.gpu_seconds > 0
            assert entry.trace_id == stream.started.trace_id


async def test_unary_and_streamed_answers_agree(acme: ForebayClient) -> None:
    answer = await acme.generate("Tell of the river.", max_tokens=20, seed=5)
    stream = acme.stream("Tell of the river.", max_tokens=20, seed=5)
    deltas = [delta async for delta in stream]
    assert answer.text == "".join(delta.text for delta in deltas)
    assert answer.choices[0].token_ids == tuple(token for delta in deltas for token in delta.token_ids)


async def test_counting_and_listing_cost_nothing(acme: ForebayClient) -> None:
    models = await acme.list_models()
    count = await acme.count_tokens("How many are we?", model=models[0].name)
    answer = await acme.generate("How many are we?", model=models[0].name, max_tokens=1)
    assert count.prompt_tokens == answer.usage.prompt
    assert count.remaining_context == models[0].context_tokens - count.prompt_tokens


async def test_bad_input_is_explained(mesh: MeshProcesses) -> None:
    """The call is one of any generated stub: our own client refuses such values before it sends them."""
    request = router_pb2.GenerateRequest(options=to_pb_options("Hello", {"max_tokens": 5}))
    request.options.sampling.temperature, request.options.sampling.top_p = 7.0, 3.0
    async with grpc.aio.insecure_channel(mesh.router_address()) as channel:
        router: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.Generate(request, metadata=[("authorization", f"Bearer {mesh.key('acme')}")])
    error = from_rpc_error(caught.value)
    assert error.code is Code.INVALID_ARGUMENT
    fields = {violation.field.rpartition(".")[2] for violation in error.field_violations}
    assert fields == {"temperature", "top_p"}


@pytest.mark.parametrize("key", ["", "fb_aaaaaaaaaaaa_" + "A" * 43, "Bearer nonsense"])
async def test_an_unknown_key_is_refused(mesh: MeshProcesses, key: str) -> None:
    async with ForebayClient(mesh.router_address(), key) as client:
        with pytest.raises(MeshError) as caught:
            await client.generate("Hello")
    assert caught.value.code is Code.UNAUTHENTICATED


async def test_a_limit_refuses_before_anything_runs(mesh: MeshProcesses) -> None:
    async with ForebayClient(mesh.router_address(), mesh.key("initech")) as client:
        streams = [aiter(client.stream("Tell me a long story.", max_tokens=2_000, ignore_eos=True)) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(MeshError) as refused:  # the basic plan has two at a time
            await client.generate("And me?", max_tokens=1)
        for stream in streams:
            await stream.aclose()
    error = refused.value
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.retry_after is not None
    assert [(violation.subject, violation.limit) for violation in error.quota_violations] == [
        ("tenant:initech", "concurrent_requests")
    ]


async def test_a_client_that_leaves_is_billed_for_what_it_got(acme: ForebayClient) -> None:
    stream = acme.stream("Tell me everything.", max_tokens=6_000, ignore_eos=True)
    seen = 0
    async for delta in stream:
        seen += len(delta.token_ids)
        if seen >= 5:
            break
    assert stream.started is not None
    entry = await entry_of(acme, stream.started.request_id)
    assert entry.outcome == "cancelled"
    assert seen <= entry.completion_tokens < 6_000


async def test_a_tenant_sees_its_own_rows_alone(mesh: MeshProcesses, acme: ForebayClient) -> None:
    mine = await acme.generate("Mine", max_tokens=2)
    async with ForebayClient(mesh.router_address(), mesh.key("globex")) as globex:
        theirs = await globex.generate("Theirs", max_tokens=2)
        await entry_of(globex, theirs.request_id)
    await entry_of(acme, mine.request_id)
    rows = [entry async for page in acme.usage() for entry in page.entries]
    assert {entry.tenant for entry in rows} == {"acme"}
    assert not [page.entries async for page in acme.usage(request_ids=[theirs.request_id]) if page.entries]
    (total,) = await acme.sum_usage()
    assert total.cost_nano_usd == sum(entry.cost_nano_usd for entry in rows)


def test_a_generic_client_finds_and_calls_the_router(mesh: MeshProcesses) -> None:
    with grpc.insecure_channel(mesh.router_address()) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"forebay.api.router.v1.RouterService", "forebay.api.router.v1.UsageService"} <= set(
            database.get_services()
        )
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("forebay.api.router.v1.RouterService").FindMethodByName("ListModels")
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        request = message_factory.GetMessageClass(method.input_type)()
        response = call(request, metadata=(("authorization", f"Bearer {mesh.key('acme')}"),), timeout=60)
        assert [model.name for model in response.models] == ["simulated"]


async def test_every_service_answers_health(mesh: MeshProcesses) -> None:
    for name in set(mesh.state()["processes"]) - {"valkey"}:
        async with mesh.channel(name) as channel:
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert response.status == health_pb2.HealthCheckResponse.SERVING, name


async def test_one_request_is_one_trace_of_five_processes(mesh: MeshProcesses, acme: ForebayClient) -> None:
    answer = await acme.generate("Trace me.", max_tokens=4)
    await entry_of(acme, answer.request_id)
    spans = await asyncio.to_thread(spans_of, mesh.data / "traces", answer.trace_id)
    by_id = {span["span_id"]: span for span in spans}
    roots = [span for span in spans if not span["parent_span_id"]]
    assert [root["name"] for root in roots] == ["router.Generate"]
    orphans = [span["name"] for span in spans if span["parent_span_id"] and span["parent_span_id"] not in by_id]
    assert orphans == []
    services = {span["resource"]["service.name"].removeprefix("forebay-") for span in spans}
    assert services == SERVICES
    assert len({span["resource"]["process.pid"] for span in spans}) == len(SERVICES)
    names = {span["name"] for span in spans}
    assert {"scheduler.queue", "engine.prefill", "engine.decode", "metering.record", "quota.settle"} <= names


def spans_of(directory: Path, trace_id: str) -> list[dict[str, Any]]:
    """Reads a trace once each of the five services, which write about twice a second, has written its part."""
    give_up = time.monotonic() + 60
    while True:
        lines = [line for file in directory.iterdir() for line in file.read_text().splitlines() if trace_id in line]
        spans = [json.loads(line) for line in lines]
        names = {span["name"] for span in spans}
        if {"router.Generate", "quota.settle", "metering.record", "engine.decode", "scheduler.queue"} <= names:
            return spans
        if time.monotonic() > give_up:
            raise AssertionError(f"the trace is incomplete: {sorted(names)}")
        time.sleep(0.05)


def test_grpcurl_works_as_the_readme_says(mesh: MeshProcesses) -> None:
    grpcurl = Path(sys.executable).with_name("grpcurl")
    command = [str(grpcurl), "-plaintext", mesh.router_address(), "list"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "forebay.api.router.v1.RouterService" in output.split()
