"""Messages that are still at the client: a public server decides whose a call is before it takes the message.

gRPC's own unary handlers get their message with the call, and a message of many small parts takes thirty times its size. Here the
handler of a public rpc gets an `UnreadMessage` instead. Until that is read, HTTP/2's flow control keeps all but the first 64 KiB
of the message at the client.

The messages that are being read are bounded together. The bound refuses nobody: a new read ends the oldest one. A client that
sends its message at once is done within milliseconds, so the oldest of many is one that sends slowly on purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from forebay.errors import Code, MeshError

# Health checks and reflection are open to callers without a key; their messages are names.
MAX_STRANGER_BYTES = 4_096
STRANGER_READS = 16
STRANGER_READ_WITHIN_S = 2.0

UNREADABLE = "the message cannot be read as the contract's; generate the stubs anew, or see what stands in between"

Context = grpc.aio.ServicerContext[Any, Any]


class Reads:
    """The messages of several calls that are being read, at most `most` at a time."""

    def __init__(self, most: int, within_s: float) -> None:
        """Prepares; a message that has not come whole after `within_s` seconds ends its call."""
        self._most = most
        self._within_s = within_s
        self._open: dict[asyncio.Timeout, None] = {}

    async def read(self, context: Context) -> Any:
        """Returns the call's next message as bytes, or grpc.aio.EOF.

        Raises:
            MeshError: DEADLINE_EXCEEDED MESSAGE_TOO_SLOW; the message did not come in time, or newer ones needed the room.
        """
        while len(self._open) >= self._most:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(self._within_s) as timeout:
                self._open[timeout] = None
                try:
                    return await context.read()
                finally:
                    self._open.pop(timeout, None)
        except TimeoutError:
            message = (
                f"the message did not arrive within {self._within_s:g} s, or the server needed its room; send it again"
            )
            raise MeshError(Code.DEADLINE_EXCEEDED, "MESSAGE_TOO_SLOW", message, retry_after=1) from None


class UnreadMessage:
    """The one message of a call, not read yet."""

    def __init__(self, context: Context) -> None:
        """Takes the call; nothing is read."""
        self._context = context

    async def read(self, reads: Reads) -> bytes:
        """Returns the message's bytes.

        Raises:
            MeshError: INVALID_ARGUMENT MALFORMED_MESSAGE when the client sent none; as of `Reads.read`.
        """
        data = await reads.read(self._context)
        if data is grpc.aio.EOF:
            raise malformed("the call ended without a message; send one")
        assert isinstance(data, bytes)
        return data


class StrangerMessages:
    """Reads the messages of callers without a key, who may ask for a server's health and its contracts."""

    def __init__(self) -> None:
        """Prepares."""
        self._reads = Reads(STRANGER_READS, STRANGER_READ_WITHIN_S)

    async def one(self, context: Context) -> bytes:
        """Returns a call's one message; errors as of `UnreadMessage.read`, and INVALID_ARGUMENT above MAX_STRANGER_BYTES."""
        return _small(await UnreadMessage(context).read(self._reads))

    async def all(self, context: Context) -> AsyncIterator[bytes]:
        """Yields a call's messages to the end; errors as of `one`."""
        while (data := await self._reads.read(context)) is not grpc.aio.EOF:
            yield _small(data)


def malformed(message: str = UNREADABLE) -> MeshError:
    """Returns the error of bytes that are not the contract's message."""
    return MeshError(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", message)


def _small(data: bytes) -> bytes:
    if len(data) > MAX_STRANGER_BYTES:
        message = f"the message has {len(data)} bytes; this rpc takes at most {MAX_STRANGER_BYTES}"
        raise MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", message)
    return data
