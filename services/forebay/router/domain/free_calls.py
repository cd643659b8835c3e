"""Paces the calls of a tenant that cost it nothing: what is refused, and what only counts tokens or lists models.

Quota's limits do not hold such calls back, and each takes a millisecond of the router's time. So a tenant has a burst of them and
then `PER_S` of them a second on each router: its next calls wait before they are read. The rule is GCRA (ITU-T I.371): each free
call moves the tenant's theoretical arrival time on by 1 / PER_S, and a call waits while that time is more than the burst ahead.
"""

from __future__ import annotations

PER_S = 100.0
BURST = 100
# However many calls wait side by side, none waits for longer.
MAX_WAIT_S = 10.0


class FreeCalls:
    """The free calls of all tenants, lately. Times are in seconds of a monotonic clock."""

    def __init__(self) -> None:
        """Nobody has called."""
        self._arrives: dict[str, float] = {}

    def note(self, tenant_id: str, now: float) -> None:
        """Counts a call that cost its tenant nothing."""
        if len(self._arrives) >= BURST:
            self._arrives = {tenant: at for tenant, at in self._arrives.items() if at > now}
        self._arrives[tenant_id] = max(now, self._arrives.get(tenant_id, now)) + 1 / PER_S

    def wait_s(self, tenant_id: str, now: float) -> float:
        """Returns how long a tenant's next call waits."""
        ahead = self._arrives.get(tenant_id, now) - now - BURST / PER_S
        return min(max(0.0, ahead), MAX_WAIT_S)
