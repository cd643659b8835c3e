"""What the quota service does for a proxy in front of the routers: it counts requests, and says when they are too many.

The proxy is not the last to look: whatever it lets through, a router verifies and counts for itself. So nobody is refused here
for a key that is unknown, or a tenant that is suspended: the router says so better.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.policy.keys import hash_key, parse_key_id, presented_key
from forebay.policy.model import TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.canary import effective_limits
from forebay.quota.domain.edge import COUNTED_AS, Taken, edge_rows
from forebay.quota.domain.limits import Row
from forebay.quota.domain.refusals import out_of_quota
from forebay.quota.policies import PolicyFeed

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class EdgeDecision:
    """What came of a tenant's requests, and the limit of which the client is told.

    Attributes:
        row: the limit, as counted here; where several refuse, the one that does so for the longest, and else the one of which the
            least is left.
        taken: what came of taking from it.
        refusal: what the client is told when there was no room.
    """

    row: Row
    taken: Taken
    refusal: MeshError | None = None


class Edge:
    """The use cases, over the policies in force and the counters."""

    def __init__(self, feed: PolicyFeed, counters: CounterStore, pepper: bytes, clock: Clock) -> None:
        self._feed = feed
        self._counters = counters
        self._pepper = pepper
        self._clock = clock

    async def count(self, tenant_id: str, hits: int) -> EdgeDecision | None:
        """Counts a tenant's requests if all limits have room for them; None where nothing is limited.

        Raises:
            MeshError: UNAVAILABLE, without the store.
        """
        tenant: TenantPolicy | None = self._feed.policies.tenants.get(tenant_id)
        rows = edge_rows(effective_limits(tenant, self._clock.now()), hits) if tenant is not None else ()
        if not rows:
            return None
        met = list(zip(rows, await self._counters.take(tenant_id, rows), strict=True))
        full = [(row, taken) for row, taken in met if not taken.room]
        if full:
            return EdgeDecision(*max(full, key=lambda each: each[1].resets_in_ms), _refused(full))
        return EdgeDecision(*min(met, key=lambda each: (each[0].value or 0) - each[1].used))

    def tenant_of(self, authorization: str) -> str | None:
        """Returns whose key `Bearer fb_...` is; None for one that a router will refuse."""
        presented = presented_key(authorization)
        key_id = parse_key_id(presented)
        key = self._feed.policies.keys.get(key_id) if key_id else None
        # As in the router: the comparison is made in any case, so that time does not tell whether a key id exists.
        genuine = hmac.compare_digest(hash_key(self._pepper, presented), key.hash if key else _NO_HASH)
        if key is None or not genuine or key.revoked:
            return None
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            return None
        return key.tenant_id


def _refused(full: Sequence[tuple[Row, Taken]]) -> MeshError:
    """Returns what a router would say: by its names of the limits, of all that have no room."""
    violations = [replace(row, limit=row.limit.removeprefix(COUNTED_AS)).violation(taken.used) for row, taken in full]
    return out_of_quota(violations, max(taken.resets_in_ms for _, taken in full))
