"""The gate of the global safety limit: every request of this replica passes it before its tenant's limits are looked at."""

from __future__ import annotations

import asyncio

from forebay.clock import Clock
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.quota.domain.safety import Share
from forebay.quota.safety import SafetyStore
from forebay.tasks import fail_on_error

LIMIT = "global_requests_per_second"


class SafetyGate:
    """Lets requests pass as the permits of all replicas together allow.

    A request that finds a permit in the leased chunk passes at once. The others wait for a grant, of which one at a time is under
    way: however many wait, they share its round trip.
    """

    def __init__(self, store: SafetyStore, clock: Clock, limit: int) -> None:
        """Prepares; the limit is at least 1."""
        self._store = store
        self._clock = clock
        self._limit = limit
        self._share = Share()
        self._waiting: list[asyncio.Future[None]] = []
        self._entering: dict[str, asyncio.Event] = {}
        self._asking: asyncio.Task[None] | None = None

    async def enter(self, request_id: str) -> None:
        """Returns once the request may pass; one that comes again, on another session, after the first.

        Raises:
            MeshError: RESOURCE_EXHAUSTED, GLOBAL_LIMIT; or UNAVAILABLE, without the store.
        """
        await self.entered(request_id)
        entered = self._entering[request_id] = asyncio.Event()
        try:
            await self._pass()
        finally:
            del self._entering[request_id]
            entered.set()

    async def entered(self, request_id: str) -> None:
        """Returns once the request does not wait here: who settles it must not overtake it."""
        while request_id in self._entering:
            await self._entering[request_id].wait()

    async def _pass(self) -> None:
        now_ms = self._now_ms()
        if self._share.spend(now_ms):
            return
        wait_ms = self._share.wait_ms(now_ms)
        if wait_ms or len(self._waiting) >= self._limit:
            raise self._refusal(wait_ms)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="global limit")
            self._asking.add_done_callback(fail_on_error)
        await waiter

    async def _ask(self) -> None:
        while waiting := [waiter for waiter in self._waiting if not waiter.done()]:
            self._waiting = []
            asked_at_ms = self._now_ms()
            error: MeshError | None = None
            passing = 0
            try:
                chunk = await self._store.grant(self._limit, self._share.ask(asked_at_ms, len(waiting)))
                passing = self._share.receive(asked_at_ms, len(waiting), chunk)
            except MeshError as unreachable:
                error = unreachable
            for number, waiter in enumerate(waiting):
                if waiter.done():  # its caller was cancelled meanwhile; its permit is lost
                    continue
                if number < passing:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error or self._refusal(self._share.wait_ms(self._now_ms())))
        self._waiting = []
        self._asking = None

    def _refusal(self, wait_ms: float) -> MeshError:
        violation = QuotaViolation("mesh", LIMIT, self._limit, self._limit, 1)
        return MeshError(
            Code.RESOURCE_EXHAUSTED,
            "GLOBAL_LIMIT",
            f"the mesh takes {self._limit} requests a second from all tenants together; try again in a moment",
            retry_after=max(wait_ms, 1.0) / 1000,
            quota_violations=[violation],
        )

    def _now_ms(self) -> float:
        return self._clock.monotonic() * 1000
