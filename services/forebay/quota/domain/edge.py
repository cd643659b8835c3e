"""What a proxy in front of the routers enforces: a tenant's requests per minute, before anything else is known of a request.

It has a counter of its own beside the one that routers enforce, with the same limit. A request that passes the proxy passes a
router next, and would else be counted twice. Nor could one counter serve both: a router counts what was *admitted*, and gives
back what never started, and of neither the proxy hears.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forebay.policy.model import TenantPolicy
from forebay.quota.domain.limits import Row, Usage, rows_of

ENFORCED = "requests_per_minute"
COUNTED_AS = f"envoy_{ENFORCED}"


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of taking from one window.

    Attributes:
        admitted: whether there was room, and it was taken.
        used: what counts now.
        resets_in_ms: until there is room for what was refused, or until some of what counts does so no longer; 0 for never.
    """

    admitted: bool
    used: int
    resets_in_ms: int


def edge_row(tenant: TenantPolicy, hits: int) -> Row | None:
    """Returns the tenant's limit as so many requests meet it at the proxy; None where it has none."""
    subject = f"tenant:{tenant.tenant_id}"
    for row in rows_of(tenant, Usage(hits, 0, 0)):
        if (row.subject, row.limit) == (subject, ENFORCED) and row.value is not None:
            return replace(row, limit=COUNTED_AS)
    return None
