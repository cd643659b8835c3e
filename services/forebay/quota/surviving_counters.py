"""The counters while their server is away, for tenants whose policy is to fail open.

Such a tenant is admitted by counters in this process to its limits divided by the number of quota replicas, less what routers
may admit by themselves (`domain.shares`), and for a bounded time. What it had used of the minute is not known here, so that at
most this share is admitted too much; of days and months, what was left is shared. The local counters are kept from one outage to
the next, so that a server that comes and goes admits no more. Each admission and settlement is in a journal on the disk before
anybody hears of it. Once the server is back, a tenant's journal is replayed before anything else is asked for it: what was
admitted is charged whether or not it fits, and settled if it was. Reserve and settle may be repeated without harm for as long
as the counters remember a settlement, so a replay that is cut short begins again with what it had under way. Everybody else
fails closed.

Counters that have come back empty, and cannot be rebuilt because the ledger is away, are away as well. What is replayed while a
tenant gathers is in its books before the ledger's sums are added, which then leave it out.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.journal import Journal
from forebay.policy.durations import LEAST_MS
from forebay.quota.counters import CounterStore, InMemoryCounters, Pulse
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Kind, Row, charged
from forebay.quota.domain.periods import Period
from forebay.quota.domain.rebuild import CountersUnknownError, Totals
from forebay.quota.domain.reservations import (
    Decision,
    LimitState,
    Observation,
    Order,
    Outcome,
    Reservation,
    Router,
    Swept,
    Terms,
)
from forebay.telemetry.logs import get_logger

# The counters cannot be asked; or they have come back empty, and the ledger that would fill them cannot be asked.
AWAY = frozenset({"QUOTA_STORE_UNAVAILABLE", "COUNTERS_UNKNOWN"})
RETRY_S = 1.0
MOST_AT_ONCE = 1_000
# In the journal and not charged yet, of tenants without limits, too; beyond it everybody fails closed.
MOST_ADMITTED = 100_000

T = TypeVar("T")
log = get_logger("surviving_counters")


@dataclass(slots=True)
class _Admission:
    """What was admitted while the server was away, and what was used once that is known."""

    order: Order
    rows: Sequence[Row]
    used: Mapping[str, int] | None = None


class SurvivingCounters:
    """A `CounterStore` over another; `run` must be running."""

    def __init__(
        self,
        store: CounterStore,
        clock: Clock,
        terms: Terms,
        fails_open: Callable[[str], bool],
        replicas: int,
        most_s: float,
        journal: Journal,
        claim: Callable[[], Awaitable[Fraction]],
        left: Callable[[Row], int],
    ) -> None:
        """Takes up what a former life of the process has left in its journal.

        Args:
            store: the counters that all replicas share.
            clock: for the local counters and the bound on an outage.
            terms: how long what lasts.
            fails_open: whether a tenant's policy is to fail open.
            replicas: how many processes of quota share each limit.
            most_s: for how long an outage admits anybody.
            journal: where admissions are kept; this is who closes it.
            claim: returns what part of this replica's portion is free of routers that may admit by themselves.
            left: returns what a day's or a month's limit had left when the server was last there.
        """
        self._store = store
        self._clock = clock
        self._fails_open = fails_open
        self._replicas = replicas
        self._most_s = most_s
        self._claim = claim
        self._left = left
        self._away_since: float | None = None
        self._admitted: defaultdict[str, dict[str, _Admission]] = defaultdict(dict)
        self._replaying: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._local = InMemoryCounters(terms, lambda: int(clock.now() * 1000))
        self._journal = journal
        for record in journal.left:
            self._read(record)

    async def run(self) -> None:
        """Replays what quiet tenants have left, until cancelled."""
        for tenant_id, left in self._admitted.items():
            for admission in left.values():  # what a former life admitted counts here, too
                await self._local.reserve(tenant_id, admission.order, admission.rows)
        try:
            while True:
                for tenant_id in [tenant_id for tenant_id, admitted in self._admitted.items() if admitted]:
                    try:
                        await self._replay(tenant_id)
                    except CountersUnknownError:
                        continue  # this one's only
                    except MeshError:
                        break
                for tenant_id in await self._local.tenants():
                    await self._local.sweep(tenant_id, MOST_AT_ONCE)
                await self._clock.sleep(RETRY_S)
        finally:
            await self._journal.close()

    async def restore(self, tenant_id: str, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant; returns whether it is held now."""
        return await self._shared(tenant_id, lambda: self._store.restore(tenant_id, order, reserved_at_ms, rows))

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""
        return await self._shared(tenant_id, lambda: self._store.totals(tenant_id, rows))

    async def reserve(self, tenant_id: str, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount, or nothing."""
        try:
            return await self._shared(tenant_id, lambda: self._store.reserve(tenant_id, order, rows))
        except MeshError as error:
            if not self._may_go_on(tenant_id, error):
                raise
            part = await self._claim()
            if not part or sum(map(len, self._admitted.values())) >= MOST_ADMITTED:
                raise
        shares = [self._share(row, part / self._replicas) for row in rows]
        decision = await self._local.reserve(tenant_id, order, shares)
        if decision.outcome is Outcome.REFUSED:
            return replace(decision, retry_after_ms=max(decision.retry_after_ms, LEAST_MS))
        if decision.outcome is Outcome.ADMITTED and order.request_id not in self._admitted[tenant_id]:
            admission = self._admitted[tenant_id][order.request_id] = _Admission(
                order, charged(rows, self._clock.now())
            )
            self._journal.append(tenant=tenant_id, order=asdict(order), rows=[_to_json(row) for row in admission.rows])
        await self._journal.synced()
        return decision

    async def take(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[Taken]:
        """Takes every row's amount, or nothing; the edge decides for itself what an outage means."""
        return await self._store.take(tenant_id, rows)

    async def settle(self, tenant_id: str, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used."""
        try:
            return await self._shared(tenant_id, lambda: self._store.settle(tenant_id, request_id, amounts))
        except MeshError as error:
            admission = self._admitted.get(tenant_id, {}).get(request_id)
            if admission is None or error.reason not in AWAY:
                raise
        if admission.used is not None:
            return False
        admission.used = dict(amounts)
        self._journal.append(tenant=tenant_id, settled=request_id, used=admission.used)
        await self._local.settle(tenant_id, request_id, amounts)
        await self._journal.synced()
        return True

    async def renew(
        self, tenant_id: str, router: Router, request_ids: Sequence[str], rows: Sequence[Row]
    ) -> Sequence[str]:
        """Extends leases; returns the request ids of those that are lost."""
        try:
            return await self._shared(tenant_id, lambda: self._store.renew(tenant_id, router, request_ids, rows))
        except MeshError:
            admitted_here = [each for each in request_ids if each in self._admitted.get(tenant_id, ())]
            await self._local.renew(tenant_id, router, admitted_here, rows)
            raise  # of the others nobody knows; the router asks again, and nobody sweeps meanwhile

    async def observe(self, tenant_id: str, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations."""
        return await self._shared(tenant_id, lambda: self._store.observe(tenant_id, observations))

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves at most so many reservations on whose time has come."""
        return await self._shared(tenant_id, lambda: self._store.sweep(tenant_id, most, not_after_ms))

    async def tenants(self) -> Sequence[str]:
        """Returns every tenant with something for the sweep."""
        return await self._store.tenants()

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""
        return await self._shared(tenant_id, lambda: self._store.peek(tenant_id, rows))

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations."""
        return await self._shared(tenant_id, lambda: self._store.reservations(tenant_id, after, most))

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept."""
        return await self._store.usage_cursor()

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor."""
        await self._store.keep_usage_cursor(cursor)

    async def ping(self) -> Pulse:
        """Says that the store can be reached."""
        return await self._store.ping()

    async def _shared(self, tenant_id: str, call: Callable[[], Awaitable[T]]) -> T:
        """Calls the shared counters, after what they do not know of this tenant yet."""
        if self._admitted.get(tenant_id):
            await self._replay(tenant_id)
        answer = await call()
        if not any(self._admitted.values()):
            self._away_since = None
        return answer

    def _may_go_on(self, tenant_id: str, error: MeshError) -> bool:
        if error.reason not in AWAY or not self._fails_open(tenant_id):
            return False
        if self._away_since is None:
            log.warning("the counters are away; admitting within local allowances", seconds=self._most_s)
            self._away_since = self._clock.monotonic()
        return self._clock.monotonic() - self._away_since < self._most_s

    def _share(self, row: Row, part: Fraction) -> Row:
        if row.value is None:
            return row
        value = self._left(row) if row.kind is Kind.PERIOD else row.value
        return replace(row, value=int(value * part), base=max(1, int(row.base * part)))

    async def _replay(self, tenant_id: str) -> None:
        async with self._replaying[tenant_id]:
            admitted = self._admitted[tenant_id]
            for request_id, admission in list(admitted.items()):
                rows = charged(admission.rows, self._clock.now())
                await self._store.reserve(tenant_id, admission.order, rows)
                if admission.used is not None:
                    await self._store.settle(tenant_id, request_id, admission.used)
                del admitted[request_id]
                self._journal.append(tenant=tenant_id, charged=request_id)
                # Its place here is free; what it took of the present minute and day still counts.
                await self._local.settle(tenant_id, request_id, {row.limit: row.amount for row in admission.rows})
        if not any(self._admitted.values()):
            self._journal.clear()
            self._away_since = None

    def _read(self, record: Mapping[str, Any]) -> None:
        admitted = self._admitted[record["tenant"]]
        if "charged" in record:
            admitted.pop(record["charged"], None)
        elif "settled" in record:
            if record["settled"] in admitted:
                admitted[record["settled"]].used = record["used"]
        else:
            order = Order(**{**record["order"], "router": Router(**record["order"]["router"])})
            admitted[order.request_id] = _Admission(order, list(_rows(record["rows"])))


def _to_json(row: Row) -> dict[str, Any]:
    period = None if row.period is None else asdict(row.period)
    return {"subject": row.subject, "limit": row.limit, "kind": row.kind.value, "amount": row.amount, "period": period}


def _rows(stored: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for row in stored:
        period = None if row["period"] is None else Period(**row["period"])
        yield Row(row["subject"], row["limit"], Kind(row["kind"]), None, row["amount"], period=period)
