"""A router that answers from a script, for what is a client of one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.cli.certificates import certify
from forebay.cli.data_dir import DataDir
from forebay.cli.mesh_state import MeshState, ModelState, ProcessState
from forebay.errors import Code, MeshError
from forebay.quota.config import QuotaConfig
from forebay.quota.main import build
from forebay.rpc.server import RpcServer

KEY = "fb_abcdefgh2345_" + "x" * 43
REQUEST_ID = "0123456789abcdef" * 2
TRACE_ID = "fedcba9876543210" * 2


class ScriptedRouter(router_pb2_grpc.RouterServiceServicer, router_pb2_grpc.UsageServiceServicer):
    """Answers every prompt with `words`, and fails as it is told.

    Attributes:
        refuse: raised before the first event.
        cut: ends the stream after the deltas, without `finished`.
        options: of the last request.
        hang: goes silent after the deltas.
        cancelled: set when the stream was taken back.
        pages: what a stream of usage yields: rows, or an error that ends it.
        asked: the usage streams that were asked for.
        endless: a usage stream that follows goes on without an end.
    """

    def __init__(self) -> None:
        self.words = ["Paris", " it", " is."]
        self.refuse: MeshError | None = None
        self.cut = False
        self.hang = False
        self.options: router_pb2.GenerateOptions | None = None
        self.cancelled = asyncio.Event()
        self.address = ""
        self.pages: list[list[metering_pb2.LedgerEntry] | MeshError] = [[], [entry()]]
        self.asked: list[router_pb2.StreamUsageRequest] = []
        self.endless = False

    def _admit(self, context: Any) -> None:
        if f"Bearer {KEY}" not in [value for name, value in context.invocation_metadata() if name == "authorization"]:
            raise MeshError(Code.UNAUTHENTICATED, "KEY_UNKNOWN", "the key is not known")
        if self.refuse:
            raise self.refuse

    async def Generate(self, request: router_pb2.GenerateRequest, context: Any) -> router_pb2.GenerateResponse:
        self._admit(context)
        self.options = request.options
        choice = router_pb2.GenerateResponse.Choice(
            text="".join(self.words), token_ids=[1, 2, 3], finish_reason=common_pb2.FINISH_REASON_STOP
        )
        return router_pb2.GenerateResponse(
            request_id=REQUEST_ID, model="simulated", choices=[choice], usage=_usage(), trace_id=TRACE_ID
        )

    async def StreamGenerate(
        self, request: router_pb2.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.StreamGenerateResponse]:
        self._admit(context)
        self.options = request.options
        event = router_pb2.StreamGenerateResponse
        try:
            yield event(
                started=event.Started(request_id=REQUEST_ID, model="simulated", prompt_tokens=7, trace_id=TRACE_ID)
            )
            for position, word in enumerate(self.words):
                yield event(delta=event.Delta(position=position, text=word, token_ids=[position + 1]))
            if self.hang:
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):  # the second while the last delta is still being written
            self.cancelled.set()
            raise
        if self.cut:
            return
        finished = event.Finished(finish_reasons=[common_pb2.FINISH_REASON_STOP], usage=_usage())
        finished.time_to_first_token.FromMilliseconds(120)
        yield event(finished=finished)

    async def CountTokens(self, request: router_pb2.CountTokensRequest, context: Any) -> router_pb2.CountTokensResponse:
        return router_pb2.CountTokensResponse(prompt_tokens=7, remaining_context=93)

    async def ListModels(self, request: router_pb2.ListModelsRequest, context: Any) -> router_pb2.ListModelsResponse:
        model = router_pb2.ListModelsResponse.Model
        if not request.page_token:
            return router_pb2.ListModelsResponse(models=[model(name="a", context_tokens=10)], next_page_token="more")
        return router_pb2.ListModelsResponse(models=[model(name="b", adapters=["x"])])

    async def StreamUsage(
        self, request: router_pb2.StreamUsageRequest, context: Any
    ) -> AsyncIterator[router_pb2.StreamUsageResponse]:
        self._admit(context)
        self.asked.append(request)
        for number, page in enumerate(self.pages):
            if isinstance(page, MeshError):
                raise page
            yield router_pb2.StreamUsageResponse(entries=page, cursor=str(number))
        if self.endless and request.follow:
            await asyncio.Event().wait()

    async def SumUsage(self, request: router_pb2.SumUsageRequest, context: Any) -> router_pb2.SumUsageResponse:
        group = [metering_pb2.UsageDimension.Name(dimension) for dimension in request.group_by]
        total = metering_pb2.UsageTotal(group=group, requests=1, prompt_tokens=7, cost_nano_usd=1_500)
        return router_pb2.SumUsageResponse(totals=[total])


def _usage() -> common_pb2.TokenUsage:
    return common_pb2.TokenUsage(prompt_tokens=7, completion_tokens=3)


def entry(
    attempt: int = 1, prompt: int = 7, completion: int = 3, nano_usd: int = 1_234, corrects: int = 0, **fields: Any
) -> metering_pb2.LedgerEntry:
    """A row of the ledger."""
    given = {
        "tenant_id": "acme",
        "plan": "enterprise",
        "model": "simulated",
        "outcome": metering_pb2.OUTCOME_COMPLETED,
    } | fields
    event = metering_pb2.UsageEvent(request_id=REQUEST_ID, attempt=attempt, trace_id=TRACE_ID, **given)
    event.gpu_time.FromMilliseconds(250)
    event.recomputed_gpu_time.FromMilliseconds(50)
    event.finished_at.FromSeconds(1_700_000_000)
    return metering_pb2.LedgerEntry(
        position=attempt, event=event, cost_nano_usd=nano_usd, billed_prompt_tokens=prompt,
        billed_completion_tokens=completion, corrects=corrects,
    )  # fmt: skip


@pytest.fixture
async def router() -> AsyncIterator[ScriptedRouter]:
    scripted = ScriptedRouter()
    server = _served(scripted)
    await server.start()
    scripted.address = server.address
    yield scripted
    await server.drain(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a mesh of which quota alone runs, on a loop of its own."""
    root = tmp_path_factory.mktemp("data")
    folder = DataDir(root)
    config = QuotaConfig(
        id="quota-1",
        policy_url=f"sqlite:///{root}/policies.sqlite",
        redis_url="redis://127.0.0.1:1/0",  # nobody counts here
        pepper="0123456789abcdef",
        tls=certify(folder.folder("certificates"), "quota", "quota-1"),
    )
    started, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            server = await build(config, stack)
            await server.start()
            quota = ProcessState(pid=1, address=server.address, restarts=0)
            MeshState(True, ModelState("simulated", "/"), {"quota": quota}).save(folder.mesh_file)
            started.set()
            await ended.wait()
            await server.drain(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(60)
    yield root
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def serving() -> Iterator[str]:
    """The address of a scripted router on a loop of its own, for commands that run one themselves."""
    started, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    addresses: list[str] = []

    async def serve() -> None:
        server = _served(ScriptedRouter())
        await server.start()
        addresses.append(server.address)
        started.set()
        await ended.wait()
        await server.drain(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(60)
    yield addresses[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


def _served(scripted: ScriptedRouter) -> RpcServer:
    server = RpcServer("127.0.0.1:0")
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, scripted, "forebay.api.router.v1.RouterService")
    server.add(router_pb2_grpc.add_UsageServiceServicer_to_server, scripted, "forebay.api.router.v1.UsageService")
    return server
