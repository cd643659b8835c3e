"""The price table in force, as metering sent it last."""

from __future__ import annotations

from forebay.errors import Code, MeshError
from forebay.policy.model import KeyPolicy, Limits, TenantPolicy
from forebay.quota.domain.limits import Usage, has_budget
from forebay.quota.domain.prices import PriceTable

RETRY_AFTER_S = 1.0


class Prices:
    """Prices requests by the table in force; `table` is replaced with each change, and None until the first is known."""

    def __init__(self, table: PriceTable | None = None) -> None:
        self.table = table

    def most(self, tenant: TenantPolicy, key: KeyPolicy | None, model: str, asked: Usage, now_s: float) -> int:
        """Returns what a request costs at most, in nano-USD.

        Raises:
            MeshError: UNAVAILABLE, PRICES_UNKNOWN when a budget is to be kept and no price is known yet.
        """
        return self._in_force(tenant, key, model).most(tenant, model, asked, now_s)

    def cost(self, tenant: TenantPolicy, key: KeyPolicy | None, model: str, used: Usage, now_s: float) -> int:
        """Returns what was used costs, in nano-USD; raises as `most` does."""
        return self._in_force(tenant, key, model).cost(tenant, model, used, now_s)

    def _in_force(self, tenant: TenantPolicy, key: KeyPolicy | None, model: str) -> PriceTable:
        """Returns the table; an empty one while none is known and nobody keeps a budget."""
        if self.table is not None:
            return self.table
        limits = [tenant.limits, tenant.model_limits.get(model, Limits()), key.limits if key else Limits()]
        if any(map(has_budget, limits)):
            raise MeshError(
                Code.UNAVAILABLE,
                "PRICES_UNKNOWN",
                "a budget holds, and metering has not told quota the prices yet; try again in a second",
                retry_after=RETRY_AFTER_S,
            )
        return PriceTable([])
