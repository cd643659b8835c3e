"""What the scheduler decides on the way, seen from the client: evictions, shortened answers, and starts that are held back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.client import AnswerStream, ForebayClient, UsageEntry
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.rpc.client import connect
from forebay.testing.mesh import MODEL, Mesh
from forebay.worker.engine import Capacity
from forebay.worker.lifetime import TICK_S
from forebay.worker.simulated_engine import SimulatedEngine

from .test_lost_counters import steps

pytestmark = [pytest.mark.slow]

SMALL = Capacity(
    kv_tokens=512, block_tokens=16, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=256, max_adapters=0
)
TOKENS = 100


async def told(stream: AnswerStream) -> list[int]:
    """Returns the tokens of an answer without gap or repeat."""
    tokens: list[int] = []
    async for delta in stream:
        assert delta.position == len(tokens)
        tokens += delta.token_ids
    return tokens


async def rows(client: ForebayClient, request_ids: set[str], attempts: int) -> list[UsageEntry]:
    """Returns the ledger's rows of requests, once there are so many."""
    found: list[UsageEntry] = []
    async with asyncio.timeout(60):
        async for page in client.usage(request_ids=sorted(request_ids), follow=True):
            found += page.entries
            if len(found) >= attempts:
                return found
    raise AssertionError("the usage stream ended")


async def test_an_evicted_stream_is_unbroken_and_billed_once(tmp_path: Path, redis_url: str) -> None:
    # Four of acme's fill the only worker. globex, which has nothing there, has one evicted, which goes on on the same worker.
    engine = SimulatedEngine(SMALL, manual=True)
    settings = {"scheduler": {"eviction": {"after_s": 0.0, "more_s": 0.0}}}
    tenants = {"acme": {"plan": "enterprise"}, "globex": {"plan": "enterprise"}}
    async with (
        Mesh(tmp_path, redis_url, engine, tenants, settings=settings) as mesh,
        ForebayClient(mesh.address, mesh.keys["acme"]) as acme,
        ForebayClient(mesh.address, mesh.keys["globex"]) as globex,
    ):
        async with background(steps(engine), "engine"):
            undisturbed = await told(acme.stream("Tell me of number 4.", max_tokens=TOKENS, ignore_eos=True, seed=4))
        streams = [
            acme.stream(f"Tell me of number {n}.", max_tokens=TOKENS, ignore_eos=True, seed=n) for n in range(1, 5)
        ]
        answers = [asyncio.create_task(told(stream)) for stream in streams]
        async with asyncio.timeout(60):
            while engine.state().running < len(streams):
                if engine.state().waiting:
                    engine.step()
                await asyncio.sleep(0)
            asked = asyncio.create_task(globex.generate("Tell me of globex.", max_tokens=TOKENS, ignore_eos=True))
            while not engine.state().waiting:  # for what makes way, and for whom
                engine.step()
                await asyncio.sleep(2 * TICK_S)  # the scheduler is to hear of each step; there are TOKENS of them
            async with background(steps(engine), "engine"):
                answer = await asked
                tokens = await asyncio.gather(*answers)
        assert answer.usage.completion == TOKENS
        assert [len(each) for each in tokens] == [TOKENS] * 4
        assert tokens[3] == undisturbed
        ids = {stream.started.request_id for stream in streams if stream.started}
        entries = await rows(acme, ids, 5)
    evicted = [entry.request_id for entry in entries if entry.outcome == "handed_over"]
    assert len(evicted) == len(entries) - 4 > 0
    for stream in streams:
        assert stream.started is not None
        assert stream.finished is not None
        mine = [entry for entry in entries if entry.request_id == stream.started.request_id]
        assert sum(entry.prompt_tokens for entry in mine) == stream.started.prompt_tokens
        assert sum(entry.completion_tokens for entry in mine) == stream.finished.usage.completion == TOKENS
        assert [entry.outcome for entry in mine][-1] == "completed"


async def test_under_pressure_an_answer_is_as_long_as_its_client_needs(tmp_path: Path, redis_url: str) -> None:
    settings = {"scheduler": {"pressure": {"pace_from": 0.0, "paced_s": 0.0, "shorten_from": 0.0}}}
    async with (
        Mesh(tmp_path, redis_url, SimulatedEngine(SMALL, speed=20), ACME, settings=settings) as mesh,
        ForebayClient(mesh.address, mesh.keys["acme"]) as acme,
    ):
        stream = acme.stream("Be brief.", max_tokens=TOKENS, least_max_tokens=7, ignore_eos=True)
        assert len(await told(stream)) == 7
        assert stream.finished is not None
        assert (stream.finished.shortened, stream.finished.reasons) == (True, ("length",))
        answer = await acme.generate("Take your time.", max_tokens=9, ignore_eos=True)
        assert (answer.shortened, answer.usage.completion) == (False, 9)


async def test_a_tenant_above_its_soft_limit_waits_and_is_served(tmp_path: Path, redis_url: str) -> None:
    # Above 1 a minute each request is held back by the limit's own rate: with 300 a minute by 200 ms more than the one before.
    tenant: dict[str, Any] = {
        "plan": "enterprise",
        "limits": {"requests_per_minute": 300, "requests_per_second": 1_000_000},
        "thresholds": {"warn_percent": 1, "throttle_percent": 1, "hard_percent": 100},
    }
    async with (
        Mesh(tmp_path, redis_url, SimulatedEngine(SMALL, speed=20), {"paced": tenant}) as mesh,
        ForebayClient(mesh.address, mesh.keys["paced"]) as paced,
    ):
        waits = []
        for _ in range(6):
            stream = paced.stream("Quick!", max_tokens=2)
            await told(stream)
            assert stream.finished is not None
            waits.append(stream.finished.queue_time)
    # The first three are within the threshold of 300 / 100 requests.
    for number, wait in enumerate(waits):
        assert wait >= max(0.0, (number + 1 - 3) * 60 / 300 - 0.001)


async def test_what_is_cached_costs_less_service_and_adapters_are_loaded(tmp_path: Path, redis_url: str) -> None:
    acme_policy = {"plan": "enterprise", "adapters": ["support"]}
    adapters = [{"name": "support", "model": MODEL, "tenant": "acme"}]
    engine = SimulatedEngine(replace(SMALL, max_adapters=2), speed=20)
    async with (
        Mesh(
            tmp_path, redis_url, engine, {"acme": acme_policy}, settings={"scheduler": {"adapters": adapters}}
        ) as mesh,
        ForebayClient(mesh.address, mesh.keys["acme"]) as acme,
        connect(mesh.addresses["scheduler"], caller="test") as channel,
    ):
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        engine_of, costs = scheduler_pb2.EngineState(), []
        for adapter in ("", "", "support"):
            before = costs and sum(costs)
            answer = await acme.generate("A long prompt. " * 8, adapter=adapter, max_tokens=4, ignore_eos=True)
            usage = answer.usage
            due = 10 * (usage.prompt - usage.cached) + usage.cached + 20 * usage.completion
            service = 0
            async with asyncio.timeout(60):
                while service != (before or 0) + due:
                    (pool,) = (await stub.DescribePools(scheduler_pb2.DescribePoolsRequest())).pools
                    service = pool.service_tenths
            costs.append(due)
            engine_of = pool.workers[0].engine
            assert bool(usage.cached) == (len(costs) == 2), "the adapter's cache is another than the bare model's"
        async with asyncio.timeout(60):
            while list(engine_of.adapters) != ["support"]:
                (pool,) = (await stub.DescribePools(scheduler_pb2.DescribePoolsRequest())).pools
                engine_of = pool.workers[0].engine
        with pytest.raises(MeshError) as caught:
            await acme.generate("Hello", adapter="sales")
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "ADAPTER_NOT_FOUND")
    assert costs[1] < costs[0]


ACME: dict[str, dict[str, Any]] = {"acme": {"plan": "enterprise"}}
