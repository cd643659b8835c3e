"""Places that are few, such as tokenizer processes, which tenants take by turns.

In one queue for everybody, a tenant that sends much would hold up all others. Here each tenant has a queue of its own. A place
that comes free goes to the next tenant's first call, so a tenant that sends much waits behind its own calls. One tenant never has
all places: another's call finds one without waiting for the end of a long piece of work.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from forebay.errors import Code, MeshError, QuotaViolation


class Turns:
    """A number of places."""

    def __init__(self, places: int, of_tenant: int, max_waiting: int, max_waiting_bytes: int) -> None:
        """Prepares.

        Args:
            places: how many there are.
            of_tenant: those that one tenant may have at a time.
            max_waiting: calls of one tenant that wait.
            max_waiting_bytes: what these hold while they wait, or four times as much for all tenants together. A tenant's
                only waiting call may hold more.
        """
        self._free = places
        self._of_tenant = of_tenant
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._taken: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        # The tenants of which somebody waits, the next one first; those who no longer wait are passed over at their turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, tenant_id: str, size: int = 0) -> AsyncIterator[None]:
        """Has a place for the length of the block, which begins when it is the tenant's turn.

        Args:
            tenant_id: whose turn.
            size: the bytes that the call holds while it waits.

        Raises:
            MeshError: RESOURCE_EXHAUSTED TENANT_FULL; too many of the tenant's calls wait, or they hold too much. UNAVAILABLE
                ROUTER_FULL; those of all tenants hold too much.
        """
        await self.take(tenant_id, size)
        try:
            yield
        finally:
            self.give_back(tenant_id)

    async def take(self, tenant_id: str, size: int = 0) -> None:
        """Takes a place when it is the tenant's turn, for the caller to give back; arguments and errors as of `turn`."""
        if self._free and self._taken[tenant_id] < self._of_tenant:
            self._free -= 1
            self._taken[tenant_id] += 1
        else:
            await self._wait(tenant_id, size)

    def give_back(self, tenant_id: str) -> None:
        """Ends a turn of a tenant, and begins the next one's."""
        self._free += 1
        _subtract(self._taken, tenant_id, 1)
        self._begin_next()

    async def _wait(self, tenant_id: str, size: int) -> None:
        queue = self._waiting.get(tenant_id, deque())
        if len(queue) >= self._max_waiting:
            message = f"{self._max_waiting} calls of the tenant wait on this router already, as many as may"
            raise tenant_full(tenant_id, message, "calls_waiting_per_router", self._max_waiting, len(queue), 1)
        held = self._held[tenant_id]
        if held and held + size > self._max_waiting_bytes:
            message = f"the tenant's prompts that wait on this router hold {held / 1e6:.1f} MB; this one does not fit beside them"
            raise tenant_full(tenant_id, message, "bytes_waiting_per_router", self._max_waiting_bytes, held, size)
        if self._held.total() + size > 4 * self._max_waiting_bytes:
            message = "too many large calls wait on this router; try again"
            raise MeshError(Code.UNAVAILABLE, "ROUTER_FULL", message, retry_after=1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._waiting.setdefault(tenant_id, queue)
        self._held[tenant_id] += size
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(tenant_id)  # it came, and is not wanted any more
            raise
        finally:
            _subtract(self._held, tenant_id, size)

    def _begin_next(self) -> None:
        """Gives free places to those who wait, a tenant after the other; tenants that have all they may are passed over."""
        for tenant_id in list(self._waiting):
            if not self._free:
                return
            if self._taken[tenant_id] >= self._of_tenant:
                continue
            queue = self._waiting.pop(tenant_id)
            turn = queue.popleft()
            while queue and turn.cancelled():
                turn = queue.popleft()
            if queue:
                self._waiting[tenant_id] = queue
            if not turn.cancelled():
                self._free -= 1
                self._taken[tenant_id] += 1
                turn.set_result(None)


def _subtract(counter: Counter[str], tenant_id: str, amount: int) -> None:
    counter[tenant_id] -= amount
    if not counter[tenant_id]:
        del counter[tenant_id]


def tenant_full(tenant_id: str, message: str, limit: str, bound: int, used: int, asked: int) -> MeshError:
    violation = QuotaViolation(f"tenant:{tenant_id}", limit, bound, used, asked)
    text = f"{message}; try again when one has been served"
    return MeshError(Code.RESOURCE_EXHAUSTED, "TENANT_FULL", text, retry_after=1, quota_violations=[violation])
