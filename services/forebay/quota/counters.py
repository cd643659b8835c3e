"""The port to the counters, and its in-memory twin.

Every operation is atomic for its tenant and takes the present from the store itself. Each raises MeshError (UNAVAILABLE,
QUOTA_STORE_UNAVAILABLE) when the store cannot be reached, in which case it may or may not have happened; all of them can be
repeated without harm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Row
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


class CounterStore(Protocol):
    """The counters of all tenants; `forebay.quota.domain.counters` says what each operation does.

    Beside them it keeps how far the ledger has been read, so that the place is never ahead of what was observed.
    """

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

    async def sweep(self, tenant_id: str, most: int) -> Swept:
        """Moves at most so many reservations on whose time has come."""

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

    async def ping(self) -> str:
        """Returns the name of the store's present life, another after each of its starts, if it can be reached."""


class InMemoryCounters:
    """The specification itself as a store, for tests; `now` returns ms since the epoch."""

    def __init__(self, terms: Terms, now: Callable[[], int]) -> None:
        self._tenants: defaultdict[str, TenantCounters] = defaultdict(lambda: TenantCounters(terms))
        self._now = now
        self._usage_cursor = ""

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

    async def sweep(self, tenant_id: str, most: int) -> Swept:
        """Moves at most so many reservations on whose time has come."""
        return self._tenants[tenant_id].sweep(self._now(), most)

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""
        return self._tenants[tenant_id].peek(self._now(), rows)

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations in order of their request id."""
        return self._tenants[tenant_id].reservations(after, most)

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept."""
        return self._usage_cursor

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor."""
        self._usage_cursor = cursor

    async def ping(self) -> str:
        """Returns the one life that memory has."""
        return "memory"
