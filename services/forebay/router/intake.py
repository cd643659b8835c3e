"""How a public call is taken in: first its key, then its message when it is the tenant's turn, and bounds before any parsing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from forebay.router.access import Access, Caller
from forebay.router.domain.ask import LongPrompt, Prompt
from forebay.router.models import IN_LINE_BYTES
from forebay.router.prompt_messages import read_prompt
from forebay.router.turns import Turns
from forebay.rpc.unread import Reads, UnreadMessage, malformed
from forebay.rpc.wire import Shape, scan

# Messages that are being read at a time, of all tenants and of one; each may be as large as a message may be.
READS = 32
READS_OF_TENANT = 8
READ_WITHIN_S = 10.0

# How the bytes of a prompt begin that is a conversation: field 1, with a length.
_CHAT = 0x0A

Context = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Received(Generic[M]):
    """A call that was taken in.

    Attributes:
        message: within its bounds, without its prompt.
        prompt: which is parsed only if it is short; None when the message has none.
    """

    caller: Caller
    message: M
    prompt: Prompt | LongPrompt | None


class Intake:
    """Takes public calls in."""

    def __init__(self, access: Access, max_waiting: int) -> None:
        """Lets in whom `access` knows; at most `max_waiting` calls of one tenant wait to be read."""
        self._access = access
        self._reads = Reads(READS, READ_WITHIN_S)
        # What waits is still at the client, so it holds nothing here.
        self._turns = Turns(READS, READS_OF_TENANT, max_waiting, max_waiting_bytes=0)

    async def receive(self, unread: UnreadMessage, context: Context, kind: type[M], shape: Shape) -> Received[M]:
        """Returns a call's caller and message.

        Raises:
            MeshError: as of `Access.verify`, before anything is read; as of `Turns.turn`, `UnreadMessage.read` and `scan`.
        """
        caller = await verify(self._access, context)
        async with self._turns.turn(caller.tenant.tenant_id):
            data = await unread.read(self._reads)
        scanned = scan(data, shape)
        try:
            message = kind.FromString(scanned.data)
        except DecodeError:
            raise malformed() from None
        return Received(caller, message, _prompt(scanned.cut))


async def verify(access: Access, context: Context) -> Caller:
    """Returns the caller of a call, by its key in the metadata `authorization`.

    Raises:
        MeshError: as of `Access.verify`.
    """
    metadata = dict(context.invocation_metadata() or ())
    return await access.verify(str(metadata.get("authorization", "")))


def _prompt(data: bytes | None) -> Prompt | LongPrompt | None:
    if data is None:
        return None
    return read_prompt(data) if len(data) <= IN_LINE_BYTES else LongPrompt(data, is_chat=data[0] == _CHAT)
