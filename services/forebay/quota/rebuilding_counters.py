"""Counters that rebuild a tenant whose state is not there before they answer for it (rule P10).

`forebay.quota.domain.rebuild` says what a tenant passes through. Here it is told whether it is new or lost, and given the
ledger's sums. Calls for one tenant share one rebuild and wait for it within a bound. Each step is a script that does nothing
where another replica was faster, so that no sum is added twice.

**When a tenant is new**, and admitted at once: its counters are absent, the ledger has not one row of it that could count in the
present month, and this process has never seen its counters nor been told of anything that it used. Routers begin a session by
renewing all that they hold, and what they do later passes through here: so that is all that ran by way of this process in its
life, and all that runs at the routers connected to it. The ledger has what ended before. What is left is a tenant before its
first row in the ledger, lost with the counters' server, that runs at a router connected to another replica, or that has not come
back yet to one that has just started. It may be admitted to its limits once more; its holds are taken in, as everyone's.
Rejected: the tenant's age by the policy store, which says nothing of what it used; a note in the counters' server, which is lost
with them; asking the routers, which those connected to others do not hear; and a minute of refusals for everyone who is new.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from forebay.errors import MeshError
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.quota.counters import LosableStore, Pulse
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Row, Usage, amounts_of, rows_of
from forebay.quota.domain.periods import Period
from forebay.quota.domain.rebuild import CountersUnknownError, NeedsRebuildError, Totals
from forebay.quota.domain.reservations import Decision, LimitState, Observation, Order, Reservation, Router, Swept
from forebay.quota.policies import PolicyFeed
from forebay.quota.usage_sums import By, UsageSums, Used
from forebay.telemetry.logs import get_logger

# Shorter than routers wait for a reservation. The rebuild itself goes on for whoever comes next.
WAIT_S = 3.0
# A step may find that another replica was faster, or that the books have changed since it looked.
MOST_STEPS = 5
# More than any month has, and than counters outlive their last use: who comes back after a long silence is as good as new.
# Whole days by UTC, of which metering keeps totals.
QUIET_DAYS = 33
# By then the ledger has what this process has seen.
KNOWN_FOR_S = 86_400.0

T = TypeVar("T")
log = get_logger("rebuild")


class RebuildingCounters:
    """A `CounterStore` over one that may forget."""

    def __init__(self, store: LosableStore, feed: PolicyFeed, sums: UsageSums | None, now: Callable[[], float]) -> None:
        """Prepares.

        Args:
            store: the counters that all replicas share.
            feed: says which days and months are kept.
            sums: the ledger; without one nobody is known to be new, and days and months begin at nothing.
            now: the present in seconds since the epoch, which says what day it is.
        """
        self._store = store
        self._feed = feed
        self._sums = sums
        self._now = now
        # When this process last knew of a tenant that it used something; no more tenants than there ever were.
        self._known: dict[str, float] = {}
        self._rebuilds: dict[str, asyncio.Task[None]] = {}

    async def restore(self, tenant_id: str, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant; returns whether it is held now."""
        self._known[tenant_id] = self._now()
        return await self._answer(tenant_id, lambda: self._store.restore(tenant_id, order, reserved_at_ms, rows))

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""
        return await self._store.totals(tenant_id, rows)

    async def reserve(self, tenant_id: str, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount, or nothing."""
        return await self._answer(tenant_id, lambda: self._store.reserve(tenant_id, order, rows))

    async def take(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[Taken]:
        """Takes every row's amount, or nothing, without a reservation."""
        return await self._answer(tenant_id, lambda: self._store.take(tenant_id, rows))

    async def settle(self, tenant_id: str, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used."""
        if any(amounts.values()):
            self._known[tenant_id] = self._now()
        return await self._answer(tenant_id, lambda: self._store.settle(tenant_id, request_id, amounts))

    async def renew(
        self, tenant_id: str, router: Router, request_ids: Sequence[str], rows: Sequence[Row]
    ) -> Sequence[str]:
        """Extends leases; returns the request ids of those that are lost."""
        self._known[tenant_id] = self._now()
        return await self._answer(tenant_id, lambda: self._store.renew(tenant_id, router, request_ids, rows))

    async def observe(self, tenant_id: str, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations."""
        return await self._store.observe(tenant_id, observations)

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves at most so many reservations on whose time has come."""
        return await self._answer(tenant_id, lambda: self._store.sweep(tenant_id, most, not_after_ms))

    async def tenants(self) -> Sequence[str]:
        """Returns every tenant with something for the sweep."""
        return await self._store.tenants()

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""
        return await self._answer(tenant_id, lambda: self._store.peek(tenant_id, rows))

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations."""
        return await self._store.reservations(tenant_id, after, most)

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept."""
        return await self._store.usage_cursor()

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor."""
        await self._store.keep_usage_cursor(cursor)

    async def ping(self) -> Pulse:
        """Says that the store can be reached."""
        return await self._store.ping()

    async def _answer(self, tenant_id: str, call: Callable[[], Awaitable[T]]) -> T:
        for _ in range(MOST_STEPS):
            try:
                answer = await call()
            except NeedsRebuildError:
                await self._rebuilt(tenant_id)
            else:
                self._known[tenant_id] = self._now()
                return answer
        raise CountersUnknownError(tenant_id)

    async def _rebuilt(self, tenant_id: str) -> None:
        """Returns once a step has been made towards the tenant's counters, by whomever it was begun."""
        rebuild = self._rebuilds.get(tenant_id)
        if rebuild is None:
            rebuild = self._rebuilds[tenant_id] = asyncio.create_task(self._rebuild(tenant_id))
            rebuild.add_done_callback(lambda done: self._forget(tenant_id, done))
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(rebuild)
        except TimeoutError:
            raise CountersUnknownError(tenant_id) from None

    def _forget(self, tenant_id: str, rebuild: asyncio.Task[None]) -> None:
        del self._rebuilds[tenant_id]
        if not rebuild.cancelled():
            rebuild.exception()  # told to whoever waits, and to nobody else if nobody does any more

    async def _rebuild(self, tenant_id: str) -> None:
        tenant = self._feed.policies.tenants.get(tenant_id)
        gathered = await self._store.gathered(tenant_id)
        if gathered is None:
            new = await self._is_new(tenant_id)
            # Somebody may have told of it while the ledger was asked.
            lost = not new or self._is_known(tenant_id)
            if await self._store.begin(tenant_id, lost=lost) and lost:
                log.warning("a tenant's counters are lost; gathering what it holds", tenant=tenant_id)
            return
        rows = await self._sums_of(tenant, gathered.request_ids) if tenant is not None else []
        if await self._store.complete(tenant_id, gathered, rows):
            log.warning("a tenant's counters are rebuilt", tenant=tenant_id, requests=len(gathered.request_ids))

    async def _is_new(self, tenant_id: str) -> bool:
        if self._is_known(tenant_id) or self._sums is None:
            return False
        since_ms = (int(self._now()) // 86_400 - QUIET_DAYS) * 86_400_000
        return not any(used.attempts for used in (await self._used(tenant_id, since_ms)).values())

    def _is_known(self, tenant_id: str) -> bool:
        return tenant_id in self._known and self._now() - self._known[tenant_id] < KNOWN_FOR_S

    async def _sums_of(self, tenant: TenantPolicy, without: Collection[str]) -> list[Row]:
        """Returns every day and month that is kept for the tenant, its keys and its models, with what the ledger has of it."""
        keys = [key for key in self._feed.policies.keys.values() if key.tenant_id == tenant.tenant_id]
        wanted: defaultdict[tuple[By, Period], list[tuple[str, Row]]] = defaultdict(list)
        for by, name, row in kept_periods(tenant, keys, self._now()):
            assert row.period is not None
            wanted[by, row.period].append((name, row))
        rows = []
        for (by, period), named in wanted.items():
            sums = await self._used(tenant.tenant_id, period.starts_at_ms, by, without)
            for name, row in named:
                if (used := sums.get(name)) is not None:
                    amounts = amounts_of(Usage(0, used.tokens, 0, cost_nano_usd=used.cost_nano_usd))
                    rows.append(replace(row, amount=amounts[row.limit]))
        return rows

    async def _used(
        self, tenant_id: str, since_ms: int, by: By = By.TENANT, without: Collection[str] = ()
    ) -> Mapping[str, Used]:
        if self._sums is None:
            return {}
        try:
            return await self._sums.used(tenant_id, since_ms, by=by, without=without)
        except MeshError as error:
            raise CountersUnknownError(tenant_id, error.reason) from None


def kept_periods(tenant: TenantPolicy, keys: Iterable[KeyPolicy], now_s: float) -> Iterable[tuple[By, str, Row]]:
    """Yields each day and month that is counted for a tenant, a key of its or it on a model, with the key's or model's name."""
    nothing = Usage(0, 0, 0)
    own = {row.name: row for row in rows_of(tenant, nothing, now_s)}
    named = [(By.TENANT, "", own)]
    named += [(By.KEY, key.key_id, {row.name: row for row in rows_of(tenant, nothing, now_s, key)}) for key in keys]
    named += [
        (By.MODEL, model, {row.name: row for row in rows_of(tenant, nothing, now_s, model=model)})
        for model in tenant.model_limits
    ]
    for by, name, rows in named:
        for row in rows.values():
            if row.period is not None and (by is By.TENANT or row.name not in own):
                yield by, name, row
