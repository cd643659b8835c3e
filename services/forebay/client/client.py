"""The client: one connection, one key, the calls of the public API as methods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import grpc

from forebay.api.metering.v1 import metering_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.client import messages
from forebay.client.connection import open_channel
from forebay.client.messages import Prompt
from forebay.client.model import Answer, Delta, Finished, Model, Options, Started, TokenCount, UsagePage, UsageTotal
from forebay.errors import Code, MeshError
from forebay.rpc.status import from_rpc_error

StreamCall = grpc.aio.UnaryStreamCall[router_pb2.StreamGenerateRequest, router_pb2.StreamGenerateResponse]


class AnswerStream:
    """An answer as it is generated: iterate over it for its deltas. The request is sent when the iteration begins.

    Leaving the iteration early cancels the request; what was generated until then is billed.

    Attributes:
        started: set before the first delta.
        finished: set after the last delta.
    """

    def __init__(self, open: Callable[[], Awaitable[StreamCall]]) -> None:
        self._open = open
        self.started: Started | None = None
        self.finished: Finished | None = None

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Yields the deltas, once.

        Raises:
            MeshError: the request was refused, or failed, or its stream broke off.
        """
        call = await self._open()
        try:
            with mesh_errors():
                async for event in call:
                    match event.WhichOneof("event"):
                        case "started":
                            self.started = messages.from_pb_started(event.started)
                        case "delta":
                            yield messages.from_pb_delta(event.delta)
                        case "finished":
                            self.finished = messages.from_pb_finished(event.finished)
            if self.started is None or self.finished is None:
                raise MeshError(Code.UNAVAILABLE, "STREAM_CUT", "the answer's stream ended before the answer did")
        finally:
            call.cancel()


class ForebayClient:
    """A client of one router, for one key; an async context manager.

    Every method raises `MeshError`, whose `code` and `reason` are for programs and whose `message` says what to do. A router
    that restarts is waited for; if none is reached within `connect_timeout`, that is UNAVAILABLE NO_ROUTER and nothing was sent.

    Args:
        address: host:port of a router, or of what balances several.
        key: the tenant's key, `fb_...`; white space around it does not belong to it.
        timeout: the deadline of each call in seconds, following the usage stream excepted.
        connect_timeout: how long a call waits for a router, in seconds.
    """

    def __init__(self, address: str, key: str, *, timeout: float = 600.0, connect_timeout: float = 5.0) -> None:
        self._address = address
        self._connect_timeout = min(connect_timeout, timeout)
        self._channel = open_channel(address)
        self._router: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._usage: router_pb2_grpc.UsageServiceAsyncStub = router_pb2_grpc.UsageServiceStub(self._channel)
        # What no header may hold is in no key: the router is to say that it is wrong.
        sendable = re.sub("[^!-~]", "?", key.strip())
        self._call: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer {sendable}"),),
            "timeout": timeout,
            "wait_for_ready": True,
        }

    async def __aenter__(self) -> ForebayClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Answers a prompt in one piece. A plain string is the only turn of a conversation."""
        request = router_pb2.GenerateRequest(options=messages.to_pb_options(prompt, options))
        await self._reach()
        with mesh_errors():
            return messages.from_pb_answer(await self._router.Generate(request, **self._call))

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AnswerStream:
        """Answers a prompt as it is generated. A plain string is the only turn of a conversation."""
        request = router_pb2.StreamGenerateRequest(options=messages.to_pb_options(prompt, options))

        async def open() -> StreamCall:
            await self._reach()
            return self._router.StreamGenerate(request, **self._call)

        return AnswerStream(open)

    async def count_tokens(self, prompt: Prompt, *, model: str = "") -> TokenCount:
        """Returns how many tokens a prompt has as it would be rendered; spends no quota."""
        request = router_pb2.CountTokensRequest(model=model, prompt=messages.to_pb_prompt(prompt))
        await self._reach()
        with mesh_errors():
            response = await self._router.CountTokens(request, **self._call)
        return TokenCount(response.prompt_tokens, response.remaining_context)

    async def list_models(self) -> list[Model]:
        """Returns the models that the key may use, by name."""
        models: list[Model] = []
        page_token = ""
        await self._reach()
        while True:
            with mesh_errors():
                page = await self._router.ListModels(router_pb2.ListModelsRequest(page_token=page_token), **self._call)
            models += [messages.from_pb_model(model) for model in page.models]
            page_token = page.next_page_token
            if not page_token:
                return models

    async def usage(
        self, cursor: str = "", *, request_ids: Sequence[str] = (), follow: bool = False
    ) -> AsyncIterator[UsagePage]:
        """Yields the tenant's rows of the ledger from a cursor on.

        Args:
            cursor: that of the last page seen; empty for the beginning, "now" for what comes.
            request_ids: only rows of these requests; all when empty.
            follow: goes on with what is yet to come, with no deadline.
        """
        request = router_pb2.StreamUsageRequest(
            cursor=cursor, filter=metering_pb2.UsageFilter(request_ids=request_ids), follow=follow
        )
        await self._reach()
        call = self._usage.StreamUsage(request, **(self._call | ({"timeout": None} if follow else {})))
        try:
            with mesh_errors():
                async for page in call:
                    yield UsagePage(tuple(messages.from_pb_entry(entry) for entry in page.entries), page.cursor)
        finally:
            call.cancel()

    async def sum_usage(self, by: Sequence[str] = ()) -> list[UsageTotal]:
        """Returns the tenant's ledger added up by dimensions: key, model, day, outcome; one grand total for none.

        Raises:
            ValueError: a dimension is not known.
        """
        request = router_pb2.SumUsageRequest(group_by=messages.to_pb_dimensions(by))
        await self._reach()
        with mesh_errors():
            response = await self._usage.SumUsage(request, **self._call)
        return [messages.from_pb_total(total) for total in response.totals]

    async def _reach(self) -> None:
        """Returns once a router is connected; at once while one is."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._channel.channel_ready()
        except TimeoutError:
            message = f"no router answers at {self._address}; is the mesh running there?"
            raise MeshError(Code.UNAVAILABLE, "NO_ROUTER", message) from None


@contextmanager
def mesh_errors() -> Iterator[None]:
    """Turns what gRPC raises into `MeshError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
