"""Sessions: long-lived bidirectional streams that carry many requests in each message.

Why one writer: two concurrent `write()` calls on one grpc.aio stream kill it (rule P12), so every session has exactly one task
that writes. Why no queue of messages: while one write is awaited, whatever else there is to say gathers in the *next message* of
the session, by appending to its repeated fields. A busy session so sends few large messages and an idle one sends at once; no
timer and no fixed delay decides, it clocks itself. What one tick of the event loop produces leaves together, because the writer
only runs again once the tick's callbacks have run.

The bound (law 8) counts items, not messages. A peer that reads too slowly makes the session overflow, and an overflown session
ends: what it carried is then owned by whoever the rules of the protocol say (P1), and memory stays what it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from forebay.errors import Code, MeshError
from forebay.rpc.status import from_rpc_error
from forebay.telemetry import metrics
from forebay.telemetry.logs import get_logger

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
M = TypeVar("M", bound=Message)
Got = TypeVar("Got", bound=Message, contravariant=True)

DEFAULT_LIMIT = 65_536
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
# A peer that is there welcomes at once; one that takes the session and hangs is as good as gone.
WELCOME_WITHIN_S = 10.0
# A stream that broke has its status already, behind the messages that are still to be read.
STATUS_WITHIN_S = 10.0

log = get_logger("session")


class Outbox(Generic[M]):
    """The one message that a session will send next, and the task that sends it.

    Attributes:
        message: append to its repeated fields, then call `flush`.
    """

    def __init__(self, new: type[M], write: Callable[[M], Awaitable[Any]], limit: int = DEFAULT_LIMIT) -> None:
        self.message: M = new()
        self._new = new
        self._write = write
        self._limit = limit
        self._items = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._overflow: MeshError | None = None
        self._writer: asyncio.Task[Any] | None = None

    def flush(self, items: int = 1) -> None:
        """Marks the message as ready; it leaves with whatever else this tick adds to it.

        Args:
            items: how many items were appended since the flush before; counts towards the session's bound.

        Raises:
            MeshError: SESSION_OVERFLOW; the peer does not keep up and the session is being ended.
        """
        self._items += items
        if self._items > self._limit:
            self._overflow = MeshError(
                Code.RESOURCE_EXHAUSTED,
                "SESSION_OVERFLOW",
                f"more than {self._limit} items wait for a peer that reads too slowly",
            )
            if self._writer is not None:
                self._writer.cancel()  # it is most likely in a write that the peer never takes
            self._wake.set()  # a writer that has not begun yet ends by itself
            raise self._overflow
        self._wake.set()

    def close(self) -> None:
        """Lets `run` return once what is ready has been written."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Writes until closed or cancelled.

        Raises:
            MeshError: SESSION_OVERFLOW.
            grpc.aio.AioRpcError: the stream broke under a write.
        """
        self._writer = asyncio.current_task()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._overflow is not None:
                    raise self._overflow
                if self._items:
                    message, self.message, self._items = self.message, self._new(), 0
                    await self._write(message)
                if self._closing and not self._items:
                    return
        except (asyncio.CancelledError, Exception):
            if self._overflow is not None:  # comes first: it is the cause, whatever it has done to the write
                raise self._overflow from None
            raise


class ServerSession(Generic[Req, Resp]):
    """The server's end of a session.

    Use it as an async context manager inside a stream-stream handler and iterate over it:

        async with ServerSession(requests, context, pb.AttachResponse) as session:
            async for request in session: ...

    The iteration ends when the peer closes its side or goes away; a failure of the writer ends it with a MeshError.
    """

    def __init__(
        self,
        requests: AsyncIterator[Req],
        context: grpc.aio.ServicerContext[Req, Resp],
        new_response: type[Resp],
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        self._requests = requests
        self._context = context
        self.outbox: Outbox[Resp] = Outbox(new_response, context.write, limit)
        self._reader: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        # Else the first write would send them, and while it is under way the stream could not be ended with a status.
        await self._context.send_initial_metadata(())
        self._reader = asyncio.current_task()
        self._writer = asyncio.create_task(self.outbox.run())
        self._writer.add_done_callback(self._writer_done)
        return self

    def fail(self, error: MeshError) -> None:
        """Ends the session with an error, from outside its handler; the first error that ends it is the one that is told."""
        self._interrupt(error)

    def _writer_done(self, writer: asyncio.Task[None]) -> None:
        # The reader may wait for a message that never comes: a failed writer must interrupt it.
        self._interrupt(None if writer.cancelled() else writer.exception())

    def _interrupt(self, failure: BaseException | None) -> None:
        if self._reader is not None:
            self._failure = self._failure or failure
            self._reader.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader = None
        if kind is None:
            self.outbox.close()  # what was said before the end is still heard
        else:
            self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        if isinstance(error, asyncio.CancelledError) and isinstance(self._failure, MeshError):
            raise self._failure from None

    def __aiter__(self) -> AsyncIterator[Req]:
        return self._requests.__aiter__()


class SessionHandler(Protocol[Got]):
    """What the owner of a client session does at its turns; all calls are synchronous and on the event loop."""

    def opened(self, outbox: Outbox[Any]) -> None:
        """A stream is open: append the hello and what the peer must know, and flush."""

    def received(self, response: Got) -> None:
        """A message has come.

        Raises:
            MeshError: the peer is not whom one looks for; the session ends, and if this was its welcome it never began.
        """

    def closed(self, error: MeshError) -> None:
        """The stream that was opened has ended; everything on it is lost. Another is opened after a pause."""


class SessionClient(Generic[Req, Resp]):
    """The client's end of a session that is opened again for ever.

    A session counts as connected once the peer's first message (its welcome) has come: a stream that gRPC has accepted may still
    be on the way to a server that is not there.

    Attributes:
        outbox: where to append while connected; None otherwise.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], grpc.aio.StreamStreamCall[Req, Resp]],
        new_request: type[Req],
        handler: SessionHandler[Resp],
        limit: int = DEFAULT_LIMIT,
        max_backoff_s: float = MAX_BACKOFF_S,
    ) -> None:
        """Prepares; `name` is a word for logs and metrics, and after a space which of several it is, for logs alone."""
        self._name = name
        self._max_backoff_s = max_backoff_s
        self._open = open
        self._new_request = new_request
        self._handler = handler
        self._limit = limit
        self._connected = asyncio.Event()
        self.outbox: Outbox[Req] | None = None

    @property
    def connected(self) -> bool:
        """Whether the peer has welcomed this session and it has not ended since."""
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        """Returns once the session is connected."""
        await self._connected.wait()

    async def run(self) -> None:
        """Opens the session, and again after each end, until cancelled.

        With a back-off from 50 ms and jitter, and no sooner than the peer has said: one whose disk is full welcomes every time.
        """
        backoff = FIRST_BACKOFF_S
        told: set[str] = set()
        while True:
            error = await self._run_once()
            if self._connected.is_set():
                backoff = FIRST_BACKOFF_S
                told.clear()
                log.info("session ended", session=self._name, reason=error.reason, message=error.message)
            elif error.reason not in told:  # each reason once, however often it is tried
                told.add(error.reason)
                log.info("session not opened", session=self._name, reason=error.reason, message=error.message)
            self._connected.clear()
            self.outbox = None
            self._handler.closed(error)
            metrics.SESSION_RECONNECTS.labels(self._name.partition(" ")[0]).inc()
            pause = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter needs no secrecy
            await asyncio.sleep(max(pause, error.retry_after or 0.0))
            backoff = min(backoff * 2, self._max_backoff_s)

    async def _run_once(self) -> MeshError:
        try:
            call = self._open()
        except OSError as error:  # a certificate's file, which is being replaced
            return MeshError(Code.UNAVAILABLE, "NOT_CONNECTED", f"the certificate cannot be read: {error.strerror}")
        outbox: Outbox[Req] = Outbox(self._new_request, writer_of(call), self._limit)
        self.outbox = outbox
        writer = asyncio.create_task(outbox.run())
        reader = asyncio.create_task(self._read(call))
        try:
            self._handler.opened(outbox)
            ended, _ = await asyncio.wait(
                {writer, reader}, timeout=WELCOME_WITHIN_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended and not self._connected.is_set():
                return MeshError(Code.UNAVAILABLE, "NO_WELCOME", "the peer took the session and says nothing")
            await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done() and not isinstance(writer.exception(), MeshError):
                # The stream broke under a write, which does not tell why: the reader gets what is left and the status.
                await asyncio.wait({reader}, timeout=STATUS_WITHIN_S)
            return (
                _end_of(reader)
                or _end_of(writer)
                or MeshError(Code.UNAVAILABLE, "SESSION_ENDED", "the peer ended the session")
            )
        finally:
            writer.cancel()
            reader.cancel()
            call.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)

    async def _read(self, call: grpc.aio.StreamStreamCall[Req, Resp]) -> None:
        async for response in call:
            self._handler.received(response)
            if not self._connected.is_set():
                self._connected.set()
                log.info("session opened", session=self._name)


def writer_of(call: grpc.aio.StreamStreamCall[Req, Any]) -> Callable[[Req], Awaitable[None]]:
    """Returns a function that writes a message and leaves the call's status to the reader.

    `call.write` will not do. If the server ends the stream while it writes, it replaces the server's status by an INTERNAL of its
    own, so the reason of the end is lost, and what the server said before it as well.

    Raises (the function):
        grpc.aio.BaseError: the stream has ended; reading to its end tells why.
    """
    core: Any = call._cython_call  # type: ignore[attr-defined]  # private to gRPC; the tests see when it goes

    async def write(message: Req) -> None:
        await call.wait_for_connection()
        await core.send_serialized_message(message.SerializeToString())

    return write


def _end_of(task: asyncio.Task[None]) -> MeshError | None:
    error = task.exception() if task.done() and not task.cancelled() else None
    if error is None:
        return None
    if isinstance(error, MeshError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, (grpc.aio.BaseError, asyncio.InvalidStateError)):
        return MeshError(Code.UNAVAILABLE, "SESSION_BROKEN", "the stream broke under a write")
    raise error
