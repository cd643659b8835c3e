"""What the quota service does for one tenant's request: reserve, renew, settle, and show.

Decisions are the counters' (`forebay.quota.domain.counters`); here a request meets its tenant's policy, and an answer without
room becomes the refusal that the client reads.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

from forebay import killpoints
from forebay.errors import Code, FieldViolation, MeshError
from forebay.policy.model import TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.limits import Row, Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Decision, LimitState, Order, Outcome, Reservation, Router
from forebay.quota.policies import PolicyFeed
from forebay.quota.safety_gate import SafetyGate

_NOTHING = Usage(0, 0, 0)


class Quota:
    """The use cases, over the policies in force, the counters and the gate of the limit above all tenants, if there is one."""

    def __init__(self, feed: PolicyFeed, counters: CounterStore, gate: SafetyGate | None = None) -> None:
        self._feed = feed
        self._counters = counters
        self._gate = gate

    async def reserve(self, tenant_id: str, order: Order) -> None:
        """Holds what a request may use at most; returns once it is held.

        Raises:
            MeshError: NOT_FOUND or PERMISSION_DENIED for the tenant, INVALID_ARGUMENT for a request that no wait makes room for,
                RESOURCE_EXHAUSTED naming every limit without room, or GLOBAL_LIMIT, ALREADY_EXISTS, UNAVAILABLE.
        """
        tenant = self._tenant(tenant_id)
        if tenant.suspended:
            raise MeshError(Code.PERMISSION_DENIED, "TENANT_SUSPENDED", f"tenant {tenant_id} is suspended")
        rows = rows_of(tenant, Usage(1, order.prompt_tokens, order.max_completion_tokens))
        oversized = [row for row in rows if not row.has_room(0)]
        if oversized:
            raise _too_large(oversized)
        if self._gate is not None:
            await self._gate.enter(order.request_id)
        decision = await self._counters.reserve(tenant_id, order, rows)
        if decision.outcome is Outcome.REFUSED:
            raise _refused(decision)
        if decision.outcome is Outcome.TAKEN:
            raise MeshError(
                Code.ALREADY_EXISTS,
                "REQUEST_ID_TAKEN",
                f"request {order.request_id} was reserved by another router, or by an earlier life of this one",
            )
        killpoints.reached("quota.after_reserve")

    async def settle(self, tenant_id: str, request_id: str, used: Usage) -> bool:
        """Replaces a reservation by what was used; returns whether this settlement was the one that counted.

        The tenant may be gone by now: what it holds is settled all the same.
        """
        if self._gate is not None:
            await self._gate.entered(request_id)
        applied = await self._counters.settle(tenant_id, request_id, amounts_of(used))
        killpoints.reached("quota.after_settle")
        return applied

    async def renew(self, router: Router, leases: Iterable[tuple[str, str]]) -> list[str]:
        """Extends leases, each given as tenant and request id; returns the request ids of those that are lost.

        A tenant that is gone has lost its leases: nothing says any more what it may hold.
        """
        by_tenant: defaultdict[str, list[str]] = defaultdict(list)
        for tenant_id, request_id in leases:
            by_tenant[tenant_id].append(request_id)
        lost: list[str] = []
        calls = []
        for tenant_id, request_ids in by_tenant.items():
            tenant = self._feed.policies.tenants.get(tenant_id)
            if tenant is None:
                lost += request_ids
            else:
                calls.append(self._counters.renew(tenant_id, router, request_ids, rows_of(tenant, _NOTHING)))
        for lost_of_tenant in await asyncio.gather(*calls):
            lost += lost_of_tenant
        return lost

    async def peek(self, tenant_id: str) -> Sequence[LimitState]:
        """Returns the state of a tenant's limits; NOT_FOUND when there is no such tenant."""
        return await self._counters.peek(tenant_id, rows_of(self._tenant(tenant_id), _NOTHING))

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of what a tenant holds, in order of the request id; NOT_FOUND when there is no such tenant."""
        self._tenant(tenant_id)
        return await self._counters.reservations(tenant_id, after, most)

    def _tenant(self, tenant_id: str) -> TenantPolicy:
        tenant = self._feed.policies.tenants.get(tenant_id)
        if tenant is None:
            raise tenant_not_found(tenant_id)
        return tenant


def tenant_not_found(tenant_id: str) -> MeshError:
    """Returns the error for a tenant that does not exist."""
    return MeshError(Code.NOT_FOUND, "TENANT_NOT_FOUND", f"there is no tenant {tenant_id!r}")


def _refused(decision: Decision) -> MeshError:
    violations = decision.violations
    wait = decision.retry_after_ms / 1000
    return MeshError(
        Code.RESOURCE_EXHAUSTED,
        violations[0].limit.upper(),
        f"{'; '.join(violation.sentence() for violation in violations)}; try again in {wait:g} s",
        retry_after=wait,
        quota_violations=violations,
    )


def _too_large(rows: Sequence[Row]) -> MeshError:
    return MeshError(
        Code.INVALID_ARGUMENT,
        "LARGER_THAN_LIMIT",
        "the request can never fit; shorten the prompt or lower max_tokens",
        field_violations=[
            FieldViolation("max_completion_tokens", f"{row.amount} at most are more than {row.limit}, {row.value}")
            for row in rows
        ],
        metadata={row.limit: str(row.value) for row in rows},
    )
