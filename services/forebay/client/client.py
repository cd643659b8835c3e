"""The client: one connection, one key, the calls of the public API as methods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import grpc

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.client import failures, messages
from forebay.client.connection import Tls, open_channel
from forebay.client.model import (
    Answer,
    Delta,
    Finished,
    Model,
    Options,
    Prompt,
    Started,
    TokenCount,
    UsagePage,
    UsageTotal,
)
from forebay.client.options import seconds, text
from forebay.rpc.status import from_rpc_error

StreamCall = grpc.aio.UnaryStreamCall[router_pb2.StreamGenerateRequest, router_pb2.StreamGenerateResponse]

# A try to connect that hangs is not waited for longer than this, once it has taken the time that the caller gave.
_LAST_WORD_S = 2.0


class AnswerStream:
    """An answer as it is generated: iterate over it for its deltas. The request is sent when the iteration begins.

    Leaving the iteration early cancels the request; what was generated until then is billed.

    Attributes:
        started: set before the first delta.
        finished: set after the last delta.
    """

    def __init__(self, open: Callable[[], Awaitable[StreamCall]], address: str, timeout: float) -> None:
        self._open = open
        self._address = address
        self._timeout = timeout
        self.started: Started | None = None
        self.finished: Finished | None = None

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Yields the deltas, once.

        Raises:
            MeshError: the request was refused, or failed, or its stream broke off.
        """
        call = await self._open()
        tokens = 0
        try:
            async for event in call:
                match event.WhichOneof("event"):
                    case "started":
                        self.started = messages.from_pb_started(event.started)
                    case "delta":
                        tokens += len(event.delta.token_ids)
                        yield messages.from_pb_delta(event.delta)
                    case "finished":
                        self.finished = messages.from_pb_finished(event.finished)
            if self.started is None or self.finished is None:
                raise failures.cut(self._address, self._request_id, tokens)
        except grpc.aio.AioRpcError as error:
            raise failures.of_stream(error, self._address, self._timeout, self._request_id, tokens) from None
        finally:
            call.cancel()

    @property
    def _request_id(self) -> str:
        return self.started.request_id if self.started else ""


class ForebayClient:
    """A client of one router, for one key; an async context manager.

    Every method raises `MeshError`, whose `code` and `reason` are for programs and whose `message` says what to do. A router
    that restarts is waited for; if none is reached within `connect_timeout`, that is UNAVAILABLE NO_ROUTER and nothing was sent.
    What no router would take is a TypeError or a ValueError before anything is sent.

    Args:
        address: host:port of a router, or of what balances several.
        key: the tenant's key, `fb_...`; white space around it does not belong to it.
        tls: True for TLS with the authorities that this machine trusts, or a `Tls` for others; False for plaintext, where others
            on the way can read the key. By default plaintext to this machine, and TLS to any other.
        timeout: the deadline of each call in seconds, following the usage stream excepted.
        connect_timeout: how long a call waits for a router, in seconds.

    Raises:
        TypeError, ValueError: an argument cannot be used.
        OSError: a file of `tls` cannot be read.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        tls: bool | Tls | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
    ) -> None:
        # What no header may hold is in no key: the router is to say that it is wrong.
        sendable = re.sub("[^!-~]", "?", text("key", key).strip())
        self._timeout = seconds("timeout", timeout)
        self._connect_timeout = min(seconds("connect_timeout", connect_timeout), timeout)
        self._address = address
        self._channel, self._encrypted = open_channel(address, tls)
        self._router: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._usage: router_pb2_grpc.UsageServiceAsyncStub = router_pb2_grpc.UsageServiceStub(self._channel)
        self._call: dict[str, Any] = {
            "metadata": (("authorization", f"Bearer {sendable}"),),
            "timeout": self._timeout,
            "wait_for_ready": True,
        }

    async def __aenter__(self) -> ForebayClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Answers a prompt in one piece. A plain string is the only turn of a conversation.

        Raises:
            TypeError: the prompt or an option has the wrong type, or an option is not known.
            ValueError: an option is out of its range.
        """
        request = router_pb2.GenerateRequest(options=messages.to_pb_options(prompt, options))
        await self._reach()
        with self._errors():
            return messages.from_pb_answer(await self._router.Generate(request, **self._call))

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AnswerStream:
        """Answers a prompt as it is generated. A plain string is the only turn of a conversation.

        Raises:
            TypeError: the prompt or an option has the wrong type, or an option is not known.
            ValueError: an option is out of its range.
        """
        request = router_pb2.StreamGenerateRequest(options=messages.to_pb_options(prompt, options))

        async def open() -> StreamCall:
            await self._reach()
            return self._router.StreamGenerate(request, **self._call)

        return AnswerStream(open, self._address, self._timeout)

    async def count_tokens(self, prompt: Prompt, *, model: str = "") -> TokenCount:
        """Returns how many tokens a prompt has as it would be rendered; spends no quota."""
        request = router_pb2.CountTokensRequest(model=text("model", model), prompt=messages.to_pb_prompt(prompt))
        await self._reach()
        with self._errors():
            response = await self._router.CountTokens(request, **self._call)
        return TokenCount(response.prompt_tokens, response.remaining_context)

    async def list_models(self) -> list[Model]:
        """Returns the models that the key may use, by name."""
        models: list[Model] = []
        page_token = ""
        await self._reach()
        while True:
            with self._errors():
                page = await self._router.ListModels(router_pb2.ListModelsRequest(page_token=page_token), **self._call)
            models += [messages.from_pb_model(model) for model in page.models]
            page_token = page.next_page_token
            if not page_token:
                return models

    async def usage(
        self,
        cursor: str = "",
        *,
        request_ids: str | Sequence[str] | None = None,
        since: float | None = None,
        follow: bool = False,
    ) -> AsyncIterator[UsagePage]:
        """Yields the tenant's rows of the ledger from a cursor on.

        Args:
            cursor: that of the last page seen; empty for the beginning, "now" for what comes.
            request_ids: only rows of these requests, and none for an empty list; None for all.
            since: only rows of what ended at this time or later, in seconds since the epoch.
            follow: goes on with what is yet to come, with no deadline.
        """
        request = router_pb2.StreamUsageRequest(
            cursor=text("cursor", cursor),
            filter=messages.to_pb_filter(request_ids or (), since),
            follow=bool(follow),
        )
        if request_ids is not None and not request_ids:
            return  # a filter with an empty list would select every row
        await self._reach()
        call = self._usage.StreamUsage(request, **(self._call | ({"timeout": None} if follow else {})))
        try:
            with self._errors():
                async for page in call:
                    yield UsagePage(tuple(messages.from_pb_entry(entry) for entry in page.entries), page.cursor)
        finally:
            call.cancel()

    async def sum_usage(self, by: str | Sequence[str] = ()) -> list[UsageTotal]:
        """Returns the tenant's ledger added up by dimensions: key, model, day, outcome; one grand total for none.

        Raises:
            TypeError: `by` holds no strings.
            ValueError: a dimension is not known, or comes twice.
        """
        request = router_pb2.SumUsageRequest(group_by=messages.to_pb_dimensions(by))
        await self._reach()
        with self._errors():
            response = await self._usage.SumUsage(request, **self._call)
        return [messages.from_pb_total(total) for total in response.totals]

    async def _reach(self) -> None:
        """Returns once a router is connected; at once while one is.

        Raises:
            MeshError: none is in time; at once where waiting cannot help, as with a certificate that is not trusted.
        """
        details = ""
        try:
            async with asyncio.timeout(self._connect_timeout):
                while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        details = await self._last_failure() or details
                        failure = failures.unreachable(details, self._address, self._encrypted)
                        if failure.reason in failures.FOR_GOOD:
                            raise failure
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            details = details or await self._last_failure()
            raise failures.unreachable(details, self._address, self._encrypted) from None

    async def _last_failure(self) -> str:
        """Returns what gRPC says of the last try to connect, which only a call hears; this one bears no key."""
        try:
            await self._router.ListModels(router_pb2.ListModelsRequest(), timeout=_LAST_WORD_S)
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        return ""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns what gRPC raises into `MeshError`."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise failures.of_call(error, self._address, self._timeout) from None


@contextmanager
def mesh_errors() -> Iterator[None]:
    """Turns what gRPC raises into `MeshError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
