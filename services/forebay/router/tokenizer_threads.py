"""The threads that tokenise, which tenants take by turns.

A long prompt takes a thread for up to a second and costs its sender nothing, be it that it is only counted or that the tenant
has no quota left. In one queue for everybody one tenant's prompts would so hold up all others'. Here each tenant has a queue of
its own, and a thread that is free takes the next tenant's first prompt: whoever sends many waits behind its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from forebay.errors import Code, MeshError, QuotaViolation

T = TypeVar("T")


class TokenizerThreads:
    """A few threads, to be used as a context manager; its end waits for what they are at."""

    def __init__(self, threads: int, max_waiting: int) -> None:
        """Prepares `threads` threads; at most `max_waiting` prompts of one tenant wait for them."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._free = threads
        self._max_waiting = max_waiting
        # The tenants of which somebody waits, the next one first; those who no longer wait are passed over at their turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def run(self, tenant_id: str, work: Callable[[], T]) -> T:
        """Returns what `work` returns, or raises what it raises, in a thread when it is the tenant's turn.

        Raises:
            MeshError: RESOURCE_EXHAUSTED TENANT_FULL; too many of the tenant's prompts wait.
        """
        if self._free:
            self._free -= 1
        else:
            await self._turn(tenant_id)
        loop = asyncio.get_running_loop()
        job = self._threads.submit(work)
        # Not when the caller no longer waits: a thread cannot be broken off.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._next))
        return await asyncio.wrap_future(job)

    async def _turn(self, tenant_id: str) -> None:
        queue = self._waiting.setdefault(tenant_id, deque())
        if len(queue) >= self._max_waiting:
            raise _tenant_full(tenant_id, self._max_waiting)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._next()  # it came, and is not wanted any more
            raise

    def _next(self) -> None:
        while self._waiting:
            tenant_id = next(iter(self._waiting))
            queue = self._waiting.pop(tenant_id)
            turn = queue.popleft()
            if queue:
                self._waiting[tenant_id] = queue
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1


def _tenant_full(tenant_id: str, bound: int) -> MeshError:
    message = f"{bound} prompts of the tenant wait to be tokenised, as many as may; try again when one has been"
    violation = QuotaViolation(f"tenant:{tenant_id}", "prompts_per_router", bound, bound, 1)
    return MeshError(Code.RESOURCE_EXHAUSTED, "TENANT_FULL", message, retry_after=1, quota_violations=[violation])
