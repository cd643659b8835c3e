"""Tenants' limits before the dispatcher, by the product's own specification of them: held at admission, settled at the end."""

from collections import defaultdict
from collections.abc import Mapping

from forebay.policy.model import TenantPolicy
from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.simulator.workload import Arrival

ROUTER = Router("router", 1)
TERMS = Terms(lease_ms=86_400_000)
"""The router lives throughout and renews its leases; one as long as any run stands for that."""


class QuotaAdmission:
    """An `Admission` by tenants' policies; clients that have none are let in."""

    def __init__(self, policies: Mapping[str, TenantPolicy]) -> None:
        self._policies = policies
        self._counters: defaultdict[str, TenantCounters] = defaultdict(_new_tenant)

    def refusal(self, id: int, arrival: Arrival, asked: int, now: float) -> str:
        """See `Admission`; the reason is the name of the first limit without room."""
        policy = self._policies.get(arrival.client)
        if policy is None:
            return ""
        order = Order(_name(id), ROUTER, arrival.prompt, asked)
        rows = rows_of(policy, Usage(1, arrival.prompt, asked), now)
        decision = self._counters[arrival.client].reserve(_ms(now), order, rows)
        return decision.violations[0].limit if decision.violations else ""

    def ended(self, id: int, arrival: Arrival, generated: int, now: float) -> None:
        """See `Admission`; what yielded nothing costs nothing."""
        if arrival.client in self._policies:
            usage = Usage(1, arrival.prompt, generated) if generated else Usage(0, 0, 0)
            self._counters[arrival.client].settle(_ms(now), _name(id), amounts_of(usage))


def _new_tenant() -> TenantCounters:
    counters = TenantCounters(TERMS)
    counters.begin(0, lost=False)
    return counters


def _name(id: int) -> str:
    return f"{id:032x}"


def _ms(now: float) -> int:
    return round(now * 1000)
