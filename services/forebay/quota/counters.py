"""The port to the counters, and its in-memory twin.

Every operation is atomic for its tenant and goes by the store's own clock. Each raises MeshError (UNAVAILABLE,
QUOTA_STORE_UNAVAILABLE) when the store cannot be reached, in which case it may or may not have happened; all of them can be
repeated without harm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Row
from forebay.quota.domain.rebuild import Gathered, Totals
from forebay.quota.domain.reservations import (
    Decision,
    LimitState,
    Observation,
    Order,
    Reservation,
    Router,
    Swept,
    Terms,
)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a store says of itself.

    Attributes:
        life: the name of its present life, another after each of its starts.
        clock_ms: what its clock reads, in ms since the epoch.
        evicts: the name of the policy by which it may drop keys when its memory is full; empty if it drops none.
    """

    life: str
    clock_ms: int
    evicts: str = ""


class CounterStore(Protocol):
    """The counters of all tenants; `forebay.quota.domain.counters` says what each operation does.

    Beside them it keeps how far the ledger has been read, so that the place is never ahead of what was observed.
    """

    async def restore(self, tenant_id: str, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant; returns whether it is held now."""

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""

    async def reserve(self, tenant_id: str, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount, or nothing."""

    async def take(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[Taken]:
        """Takes every row's amount, or nothing, without a reservation; says of each what came of it. A repeat takes again.

        The rows are of rates and windows, and have values.
        """

    async def settle(self, tenant_id: str, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used; True for the one settlement that counts."""

    async def renew(
        self, tenant_id: str, router: Router, request_ids: Sequence[str], rows: Sequence[Row]
    ) -> Sequence[str]:
        """Extends leases; returns the request ids of those that are lost."""

    async def observe(self, tenant_id: str, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations; returns how many observations were news."""

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves at most so many reservations on whose time has come.

        Nothing when the store's clock reads more than `not_after_ms`, which is so after a step forward.
        """

    async def tenants(self) -> Sequence[str]:
        """Returns every tenant with something for the sweep, now or later; one that is no longer a tenant, too."""

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations in order of their request id."""

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept; empty at first."""

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor: everything up to it has been observed."""

    async def ping(self) -> Pulse:
        """Says that the store can be reached."""


class LosableStore(CounterStore, Protocol):
    """A store that may forget a tenant, and what it takes to rebuild one.

    What depends on a tenant's state raises NeedsRebuildError where that is not there, which `forebay.quota.rebuilding_counters`
    sees to.
    """

    async def begin(self, tenant_id: str, *, lost: bool) -> bool:
        """Puts an absent tenant's counters there, as a new one's or to gather what a lost one's were; False if they are."""

    async def gathered(self, tenant_id: str) -> Gathered | None:
        """Returns what is to be completed; None while the tenant is absent, gathers or is ready."""

    async def complete(self, tenant_id: str, gathered: Gathered, rows: Sequence[Row]) -> bool:
        """Adds the ledger's sums, and makes the tenant ready; False if it was not for this to do."""


class InMemoryCounters:
    """The specification itself as a store, for tests and for what a process counts by itself."""

    def __init__(self, terms: Terms, now: Callable[[], int], *, all_new: bool = True) -> None:
        """Begins empty.

        Args:
            terms: how long what lasts.
            now: returns the present in ms since the epoch.
            all_new: a tenant that was never named is new; else it is absent, as it is on a server.
        """

        def absent() -> TenantCounters:
            tenant = TenantCounters(terms)
            if all_new:
                tenant.begin(now(), lost=False)
            return tenant

        self._tenants: defaultdict[str, TenantCounters] = defaultdict(absent)
        self._now = now
        self._usage_cursor = ""

    async def lose(self, tenant_id: str) -> None:
        """Forgets a tenant, as a server does that loses any of its keys."""
        self._tenants.pop(tenant_id, None)

    async def begin(self, tenant_id: str, *, lost: bool) -> bool:
        """Puts an absent tenant's counters there; False if they are."""
        return self._tenants[tenant_id].begin(self._now(), lost=lost)

    async def restore(self, tenant_id: str, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant; returns whether it is held now."""
        return self._tenants[tenant_id].restore(self._now(), order, reserved_at_ms, rows)

    async def gathered(self, tenant_id: str) -> Gathered | None:
        """Returns what is to be completed, if anything is."""
        return self._tenants[tenant_id].gathered(self._now())

    async def complete(self, tenant_id: str, gathered: Gathered, rows: Sequence[Row]) -> bool:
        """Adds the ledger's sums, and makes the tenant ready; False if it was not for this to do."""
        return self._tenants[tenant_id].complete(self._now(), gathered, rows)

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""
        return self._tenants[tenant_id].totals(self._now(), rows)

    async def reserve(self, tenant_id: str, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount, or nothing."""
        return self._tenants[tenant_id].reserve(self._now(), order, rows)

    async def take(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[Taken]:
        """Takes every row's amount, or nothing, without a reservation."""
        return self._tenants[tenant_id].take(self._now(), rows)

    async def settle(self, tenant_id: str, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used."""
        return self._tenants[tenant_id].settle(self._now(), request_id, amounts)

    async def renew(
        self, tenant_id: str, router: Router, request_ids: Sequence[str], rows: Sequence[Row]
    ) -> Sequence[str]:
        """Extends leases; returns the request ids of those that are lost."""
        return self._tenants[tenant_id].renew(self._now(), router, request_ids, rows)

    async def observe(self, tenant_id: str, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations; returns how many observations were news."""
        return self._tenants[tenant_id].observe(self._now(), observations)

    async def tenants(self) -> Sequence[str]:
        """Returns every tenant that was ever named."""
        return list(self._tenants)

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves at most so many reservations on whose time has come."""
        return self._tenants[tenant_id].sweep(self._now(), most, not_after_ms)

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""
        return self._tenants[tenant_id].peek(self._now(), rows)

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations in order of their request id."""
        return self._tenants[tenant_id].reservations(self._now(), after, most)

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept."""
        return self._usage_cursor

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor."""
        self._usage_cursor = cursor

    async def ping(self) -> Pulse:
        """Returns the one life that memory has."""
        return Pulse("memory", self._now())
