"""What an operator reads of pools."""

from __future__ import annotations

import io
import json
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from rich.console import Console

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.cli.directory import Pool, leaders_pools
from forebay.cli.mesh_state import MeshState, ModelState, ProcessState
from forebay.cli.operator import Operator
from forebay.cli.pools import describe, render, show
from forebay.errors import Code, MeshError
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import to_pb_duration


def printed(*pools: Pool) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=160).print(render(pools))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def test_pools_are_told_with_workers_and_flows() -> None:
    worker = scheduler_pb2.DescribePoolsResponse.Worker(
        worker=common_pb2.Peer(id="worker-1", incarnation=1),
        capacity=scheduler_pb2.Capacity(kv_tokens=1000, max_num_seqs=64),
        engine=scheduler_pb2.EngineState(kv_tokens_used=250, preemptions=3, healthy=True, adapters=["[support]"]),
        kv_tokens_expected=900, kv_tokens_lent=100, in_flight=7, alpha=0.92, alpha_lowered=0.05, draining=True,
    )  # fmt: skip
    away = scheduler_pb2.DescribePoolsResponse.Worker(worker=common_pb2.Peer(id="worker-2"))
    flow = scheduler_pb2.DescribePoolsResponse.Flow(
        tenant_id="acme", key_id="k1", service_class=quota_pb2.SERVICE_CLASS_GOLD, weight_milli=2500, queued=4, in_flight=7,
        share=0.625, service_tenths=12_340, owed_tenths=10_000, virtual_counter=4_936,
    )  # fmt: skip
    waits = scheduler_pb2.DescribePoolsResponse.Waiting(
        service_class=quota_pb2.SERVICE_CLASS_GOLD, queued=4, oldest=to_pb_duration(1.5)
    )
    shared = Pool(
        model="m", workers=[worker, away], flows=[flow], waiting=[waits], lenders=["gold"], queued=4, fairness=0.75
    )
    assert printed(shared, Pool(name="gold", model="m", lends=True, fairness=1.0)) == [
        "pool shared model m · waiting: gold 4 (oldest 1.5 s) · fairness 0.750 · borrows from gold",
        "worker in flight KV used KV at peak alpha lowered lent preemptions state",
        "worker-1 7 / 64 25% 90% 0.920 0.050 10% 3 draining, adapters [support]",
        "worker-2 0 / 0 – – 0.000 0.000 – 0 away",
        "class tenant key weight queued in flight share received owed rec./owed counter",
        "gold acme k1 2.5 4 7 62.5% 1,234 1,000 1.23 494",
        "pool gold model m · nothing waits · fairness 1.000 · lends its idle workers",
    ]


def test_no_pools_are_said_to_be_none() -> None:
    assert printed() == ["no pool has a worker or a request"]


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Tells its pools one a page; without any it follows."""

    def __init__(self, *names: str) -> None:
        self._names = names

    async def DescribePools(
        self, request: scheduler_pb2.DescribePoolsRequest, context: Any
    ) -> scheduler_pb2.DescribePoolsResponse:
        if not self._names:
            raise MeshError(Code.FAILED_PRECONDITION, "NOT_LEADER", "another does")
        page = int(request.page_token or 0)
        more = str(page + 1) if page + 1 < len(self._names) else ""
        return scheduler_pb2.DescribePoolsResponse(pools=[Pool(name=self._names[page])], next_page_token=more)


class PlainOperator(Operator):
    """An operator whose processes take plaintext."""

    def channel(self, name: str) -> grpc.aio.Channel:
        return connect(self.mesh.address(name), caller="test")


async def operator_of(stack: AsyncExitStack, *schedulers: Scheduler) -> Operator:
    """Returns the operator of a mesh that has these schedulers, and a router that does not run."""
    processes = {"router-1": ProcessState(1, "127.0.0.1:1", 0)}
    for number, scheduler in enumerate(schedulers, start=1):
        server = RpcServer("127.0.0.1:0")
        server.add(
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
            scheduler,
            "forebay.api.scheduler.v1.SchedulerService",
        )
        await server.start()
        stack.push_async_callback(server.drain, 0)
        processes[f"scheduler-{number}"] = ProcessState(1, server.address, 0)
    tls: Any = None
    return PlainOperator(MeshState(True, ModelState("m", "/"), processes), tls)


@pytest.mark.parametrize(
    ("schedulers", "leader", "pools"),
    [
        ([Scheduler(), Scheduler("a", "b")], "scheduler-2", ["a", "b"]),
        ([Scheduler("a")], "scheduler-1", ["a"]),
        ([Scheduler()], "", []),
        ([], "", []),
    ],
)
async def test_the_pools_are_those_of_whoever_leads(schedulers: list[Scheduler], leader: str, pools: list[str]) -> None:
    async with AsyncExitStack() as stack:
        operator = await operator_of(stack, *schedulers)
        found = await leaders_pools(operator)
        assert (found[0], [pool.name for pool in found[1]]) == (leader, pools)
        if not leader:
            with pytest.raises(MeshError, match="no scheduler leads now"):
                await describe(operator, "")


async def test_a_pool_is_found_by_the_name_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async with AsyncExitStack() as stack:
        operator = await operator_of(stack, Scheduler("", "gold"))
        assert [pool.name for pool in await describe(operator, "shared")] == [""]
        assert [pool.name for pool in await describe(operator, "gold")] == ["gold"]
        await show(operator, "shared", as_json=False)
        assert capsys.readouterr().out.startswith("pool shared ")
        await show(operator, "", as_json=True)
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(pool["name"], pool["queued"], pool["workers"]) for pool in told] == [
            ("shared", 0, []),
            ("gold", 0, []),
        ]
        with pytest.raises(MeshError, match="there is no pool 'silver'; there are: gold, shared"):
            await describe(operator, "silver")
