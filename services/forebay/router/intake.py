"""How a public call is taken in: first its key, then its message when it is the tenant's turn, and bounds before any parsing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from forebay.errors import Code, MeshError
from forebay.memory import trim
from forebay.router.access import Access, Caller
from forebay.router.domain.ask import LongPrompt, Prompt
from forebay.router.domain.free_calls import FreeCalls
from forebay.router.models import IN_LINE_BYTES
from forebay.router.prompt_messages import read_prompt
from forebay.router.turns import Turns, tenant_full
from forebay.rpc.unread import Reads, UnreadMessage, malformed
from forebay.rpc.wire import Shape, scan

# Messages that are being read at a time, of all tenants and of one; each may be as large as a message may be.
READS = 32
READS_OF_TENANT = 8
READ_WITHIN_S = 10.0
# A tenant's large messages are paced: to receive one costs processor time, even if it is refused. Each byte above a size keeps
# its place taken for longer, so one tenant sends at most eight times this rate. That is several times what can be tokenised.
PACED_ABOVE_BYTES = 16 << 10
PACED_BYTES_PER_S = 1 << 20

# What the C library keeps of a message of this size is worth giving back.
LARGE_BYTES = 256 << 10
TRIM_AFTER_S = 2.0

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
        self._trimming: asyncio.TimerHandle | None = None
        self._turns = Turns(READS, READS_OF_TENANT, max_waiting, max_waiting_bytes=0)
        self._free_calls = FreeCalls()
        self._max_waiting = max_waiting
        self._paced: Counter[str] = Counter()

    async def receive(self, unread: UnreadMessage, context: Context, kind: type[M], shape: Shape) -> Received[M]:
        """Returns a call's caller and message.

        Raises:
            MeshError: as of `Access.verify`, before anything is read; RESOURCE_EXHAUSTED TENANT_FULL when too many calls of the
                tenant are paced; as of `Turns.turn`, `UnreadMessage.read` and `scan`.
        """
        caller = await verify(self._access, context)
        tenant_id = caller.tenant.tenant_id
        if wait_s := self._free_calls.wait_s(tenant_id, asyncio.get_running_loop().time()):
            await self._pace(tenant_id, wait_s)
        with self.free_if_refused(tenant_id):
            scanned = scan(await self._read(unread, tenant_id), shape)
            try:
                message = kind.FromString(scanned.data)
            except DecodeError:
                raise malformed() from None
            return Received(caller, message, _prompt(scanned.cut))

    def free(self, tenant_id: str) -> None:
        """Counts a call that costs its tenant nothing."""
        self._free_calls.note(tenant_id, asyncio.get_running_loop().time())

    @contextmanager
    def free_if_refused(self, tenant_id: str) -> Iterator[None]:
        """Counts the call of the block as free if it is refused for what it is or asks."""
        try:
            yield
        except MeshError as error:
            if error.code in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED):
                self.free(tenant_id)
            raise

    async def _pace(self, tenant_id: str, wait_s: float) -> None:
        """Waits before a call is read, while as many of its tenant's calls wait so as may."""
        waiting = self._paced[tenant_id]
        if waiting >= self._max_waiting:
            message = f"{waiting} calls of the tenant wait on this router, as many as may; try again when one has been answered"
            raise tenant_full(tenant_id, message, "calls_waiting_per_router", self._max_waiting, waiting, 1)
        self._paced[tenant_id] += 1
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._paced[tenant_id] -= 1
            if not self._paced[tenant_id]:
                del self._paced[tenant_id]

    async def _read(self, unread: UnreadMessage, tenant_id: str) -> bytes:
        """Returns the message's bytes; its place is kept for as long as the next message is to wait."""
        await self._turns.take(tenant_id)
        pause_s = 0.0
        try:
            data = await unread.read(self._reads)
            pause_s = max(0, len(data) - PACED_ABOVE_BYTES) / PACED_BYTES_PER_S
            if len(data) >= LARGE_BYTES:
                self._trim_later()
            return data
        finally:
            if pause_s:
                asyncio.get_running_loop().call_later(pause_s, self._turns.give_back, tenant_id)
            else:
                self._turns.give_back(tenant_id)

    def _trim_later(self) -> None:
        """Gives back what large messages leave behind: once for those of some seconds, and in a thread, for it takes a while."""
        if self._trimming is None:
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_later(TRIM_AFTER_S, self._trim, loop)

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        self._trimming = None
        loop.run_in_executor(None, trim)


async def verify(access: Access, context: Context) -> Caller:
    """Returns the caller of a call, by its key in the metadata `authorization`.

    Raises:
        MeshError: as of `Access.verify`; UNAUTHENTICATED for several keys, of which a proxy may have looked at another one.
    """
    presented = [str(value) for name, value in context.invocation_metadata() or () if name == "authorization"]
    if len(presented) > 1:
        message = f"the call has {len(presented)} keys; send `authorization: Bearer fb_...` once in the metadata"
        raise MeshError(Code.UNAUTHENTICATED, "SEVERAL_KEYS", message)
    return await access.verify("".join(presented))


def _prompt(data: bytes | None) -> Prompt | LongPrompt | None:
    if data is None:
        return None
    return read_prompt(data) if len(data) <= IN_LINE_BYTES else LongPrompt(data, is_chat=data[0] == _CHAT)
