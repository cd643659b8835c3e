"""The clients: they ask as planned, leave as planned, and try again elsewhere when their router dies or refuses them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc
from grpc_status import rpc_status

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code
from forebay.rpc.client import connect
from forebay.rpc.status import from_rpc_error
from forebay.testing.processes import MeshProcesses

from .lives import LOOK_EVERY_S, Lives
from .plan import ROUTERS, Ask, Plan
from .records import Answer, End, Try

MOST_TRIES = 40
PAUSE_S = 0.5


class Load:
    """All clients of a run.

    Attributes:
        begun: requests begun.
        tries: every call.
    """

    def __init__(self, plan: Plan, answers: Sequence[Answer], mesh: MeshProcesses, lives: Lives) -> None:
        """Prepares; `answers` are the undisturbed ones, of which a client that leaves takes a share."""
        self.begun = 0
        self.tries: list[Try] = []
        self._asks = iter(plan.asks)
        self._answers = answers
        self._lives = lives
        processes = mesh.state()["processes"]
        self._addresses = {name: str(processes[name]["address"]) for name in ROUTERS}
        self._keys = {tenant: mesh.key(tenant) for tenant in {ask.tenant for ask in plan.asks}}

    async def run(self, concurrency: int, horizon: Callable[[], float]) -> None:
        """Asks everything, `concurrency` at a time, and never begins more requests than `horizon` allows."""

        async def one_after_another() -> None:
            for ask in self._asks:
                while self.begun >= horizon():
                    await asyncio.sleep(LOOK_EVERY_S)
                self.begun += 1
                await self._see_through(ask)

        await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

    async def _see_through(self, ask: Ask) -> None:
        for number in range(MOST_TRIES):
            router = self._choose(ask, number)
            label, now = f"{ask.number}.{number}", time.monotonic()
            call = Try(ask.number, label, ask.tenant, len(ask.prompt), router, now, ask.deadline_s)
            self.tries.append(call)
            try:
                await self._call(call, ask)
            finally:
                call.ended = time.monotonic()
            if call.end is not End.FAILED:
                return
            await asyncio.sleep(PAUSE_S)

    def _choose(self, ask: Ask, number: int) -> str:
        """Returns the router for a try: by turns, but none that is known to be dead while the other is not."""
        turn = ROUTERS.index(ask.router) + number
        first, second = ROUTERS[turn % 2], ROUTERS[(turn + 1) % 2]
        return second if self._lives.serving(second) and not self._lives.serving(first) else first

    async def _call(self, call: Try, ask: Ask) -> None:
        leaves_at = None if ask.leaves_after is None else int(ask.leaves_after * len(self._answers[ask.number].tokens))
        # A connection for each call: one that is kept remembers its router's death and waits before it dials again.
        async with connect(self._addresses[call.router], caller="client") as channel:
            stream = router_pb2_grpc.RouterServiceStub(channel).StreamGenerate(
                router_pb2.StreamGenerateRequest(options=_options(ask, call.label)),
                metadata=(("authorization", f"Bearer {self._keys[ask.tenant]}"),),
                timeout=ask.deadline_s,
            )
            try:
                async for event in stream:
                    _take(call, event)
                    if leaves_at is not None and call.end is not End.FINISHED and len(call.tokens) >= leaves_at:
                        stream.cancel()
                        call.end = End.LEFT
                        return
                if call.end is not End.FINISHED:
                    call.error = "the stream ended without an end"
            except grpc.aio.AioRpcError as error:
                mesh_error = from_rpc_error(error)
                call.end = End.LATE if mesh_error.code is Code.DEADLINE_EXCEEDED else End.FAILED
                call.typed = rpc_status.from_call(error) is not None
                call.error = f"{mesh_error.code.name} {mesh_error.reason}: {mesh_error.message}"


def _take(call: Try, event: router_pb2.StreamGenerateResponse) -> None:
    match event.WhichOneof("event"):
        case "started":
            call.request_id = event.started.request_id
        case "delta":
            call.deltas.append((event.delta.position, len(event.delta.token_ids)))
            call.tokens += event.delta.token_ids
            call.text += event.delta.text
        case "finished":
            usage = event.finished.usage
            call.usage = (usage.prompt_tokens, usage.completion_tokens)
            call.end = End.FINISHED


def _options(ask: Ask, label: str) -> router_pb2.GenerateOptions:
    return router_pb2.GenerateOptions(
        prompt=router_pb2.Prompt(tokens=router_pb2.TokenIds(ids=ask.prompt)),
        sampling=common_pb2.Sampling(
            max_tokens=ask.max_tokens, seed=ask.seed, ignore_eos=ask.ignore_eos, stop=ask.stop
        ),
        client_request_id=label,
    )
