"""A worker of a real model is killed in mid-stream: another goes on, and the client's stream is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.client import ForebayClient, UsageEntry
from forebay.testing.processes import MeshProcesses

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.vllm, pytest.mark.xdist_group("vllm")]

QUESTION = "Tell me the story of an old water mill."
TOKENS = 96


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcesses]:
    with MeshProcesses(tmp_path_factory.mktemp("pair") / "data", engine="vllm", workers=2, ready_s=600) as mesh:
        yield mesh


async def test_a_stream_survives_its_worker(
    mesh: MeshProcesses, record_property: Callable[[str, object], None]
) -> None:
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        undisturbed = await client.generate(QUESTION, max_tokens=TOKENS, temperature=0.0)
        stream = client.stream(QUESTION, max_tokens=TOKENS, temperature=0.0)
        tokens: list[int] = []
        killed_at: int | None = None
        async for delta in stream:
            assert delta.position == len(tokens)
            tokens += delta.token_ids
            if killed_at is None and len(tokens) >= 10:
                mesh.kill(await busy_worker(mesh))
                killed_at = len(tokens)
        assert stream.finished is not None
        assert stream.finished.usage.completion == len(tokens)

        assert stream.started is not None
        entries: list[UsageEntry] = []
        async with asyncio.timeout(180):  # the killed worker reports its attempt once it has loaded its model again
            async for page in client.usage(request_ids=[stream.started.request_id], follow=True):
                entries += page.entries
                if {entry.attempt for entry in entries} == {1, 2}:
                    break
    expected = undisturbed.choices[0].token_ids
    same = next((n for n, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), len(tokens))
    report = {
        "tokens": len(tokens),
        "killed_at": killed_at,
        "same_as_undisturbed": same,
        "expected": len(expected),
    }
    record_property("measured", json.dumps(report))
    assert killed_at is not None
    assert same >= killed_at
    assert sum(entry.completion_tokens for entry in entries) == len(tokens)
    assert sum(entry.prompt_tokens for entry in entries) == stream.started.prompt_tokens


async def busy_worker(mesh: MeshProcesses) -> str:
    """Returns the worker that the one running request is on."""
    async with mesh.channel(await mesh.leading_scheduler()) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        pools = await stub.DescribePools(scheduler_pb2.DescribePoolsRequest(), timeout=60)
    (busy,) = [worker.worker.id for pool in pools.pools for worker in pool.workers if worker.in_flight]
    return str(busy)
