"""What a proxy in front of the routers enforces: a tenant's requests, before anything else is known of one.

It has counters of its own beside those that routers enforce, with the same limits. A request that passes the proxy passes a
router next, and would else be counted twice. Nor could one counter serve both: a router counts what was *admitted*, and gives
back what never started, and of neither the proxy hears.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forebay.policy.model import TenantPolicy
from forebay.quota.domain.limits import Row, Usage, rows_of

ENFORCED = ("requests_per_second", "requests_per_minute")
COUNTED_AS = "envoy_"


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of taking from a limit, together with others.

    Attributes:
        room: whether this one had room; it was taken when all of them had.
        used: what counts now.
        resets_in_ms: until there is room for what was refused, or until some of what counts does so no longer; 0 for never.
    """

    room: bool
    used: int
    resets_in_ms: int


def edge_rows(tenant: TenantPolicy, hits: int) -> tuple[Row, ...]:
    """Returns the tenant's limits as so many requests meet them at the proxy; none that it does not have."""
    subject = f"tenant:{tenant.tenant_id}"
    return tuple(
        replace(row, limit=COUNTED_AS + row.limit)
        for row in rows_of(tenant, Usage(hits, 0, 0))
        if row.subject == subject and row.limit in ENFORCED and row.value is not None
    )
