"""Plans: templates that a tenant's policy is made from."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forebay.policy.model import Limits, ServiceClass, TenantPolicy

# What each tenant of a class may do in a second unless its plan or its own entry says otherwise.
REQUESTS_PER_SECOND = {ServiceClass.GOLD: 100, ServiceClass.SILVER: 50, ServiceClass.BRONZE: 20}


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan.

    Attributes:
        name: such as "basic".
        service_class: the class of its tenants.
        weight_milli: their weight within the class, in thousandths.
        limits: their limits.
        nano_usd_per_million_tokens: the price for tenants priced by plan; None where the plan has none.
        alert_percent: the share of a budget at which its tenants are alerted.
    """

    name: str
    service_class: ServiceClass
    weight_milli: int
    limits: Limits
    nano_usd_per_million_tokens: int | None
    alert_percent: int

    def limits_in(self, service_class: ServiceClass) -> Limits:
        """Returns the plan's limits, with those of a class for what the plan leaves open."""
        if self.limits.requests_per_second is not None:
            return self.limits
        return replace(self.limits, requests_per_second=REQUESTS_PER_SECOND[service_class])

    def tenant(
        self, tenant_id: str, limits: Mapping[str, int], fields: Mapping[str, Any], pepper: bytes
    ) -> TenantPolicy:
        """Returns the policy of a tenant on this plan.

        Args:
            tenant_id: the tenant.
            limits: its own limits, which replace the plan's one by one.
            fields: its own values of other fields of TenantPolicy, which replace the plan's.
            pepper: the secret that its isolation key is derived from.
        """
        service_class: ServiceClass = fields.get("service_class", self.service_class)
        from_plan = TenantPolicy(
            tenant_id=tenant_id,
            plan=self.name,
            service_class=service_class,
            weight_milli=self.weight_milli,
            limits=replace(self.limits_in(service_class), **limits),
            alert_percent=self.alert_percent,
            isolation_key=isolation_key(pepper, tenant_id),
        )
        return replace(from_plan, **fields)


def isolation_key(pepper: bytes, tenant_id: str) -> bytes:
    """Returns the 32 bytes that keep a tenant's prefix hashes and cache apart: the same after a restart, guessed by nobody."""
    return hmac.digest(pepper, f"isolation:{tenant_id}".encode(), hashlib.sha256)
