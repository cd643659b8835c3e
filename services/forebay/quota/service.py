"""What the quota service does for one tenant's request: reserve, renew, settle, and show.

Decisions are the counters' (`forebay.quota.domain.counters`); here a request meets its tenant's policy, and an answer without
room becomes the refusal that the client reads.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from forebay import killpoints
from forebay.errors import Code, FieldViolation, MeshError
from forebay.policy.model import KeyPolicy, Limits, LossPolicy, TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.canary import effective_limits
from forebay.quota.domain.limits import BUDGETS, Row, Usage, amounts_of, charged, has_budget, hold_values, rows_of
from forebay.quota.domain.refusals import out_of_quota
from forebay.quota.domain.reservations import Decision, Hold, Lease, LimitState, Order, Outcome, Reservation, Router
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.safety_gate import SafetyGate
from forebay.telemetry.logs import get_logger
from forebay.words import amount, limit_value, subject

_NOTHING = Usage(0, 0, 0)
# Leases of one message that are taken in again together; the others of this replica's calls go between.
RESTORED_AT_ONCE = 256
# Failures that say nothing of other tenants.
_ONE_TENANTS = {"COUNTERS_UNKNOWN", "PRICES_UNKNOWN"}

T = TypeVar("T")
log = get_logger("quota")


class Quota:
    """The use cases, over the policies in force, the counters and the gate of the global limit."""

    def __init__(
        self,
        feed: PolicyFeed,
        counters: CounterStore,
        prices: Prices | None = None,
        now: Callable[[], float] = time.time,
        gate: SafetyGate | None = None,
        look_up: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Prepares the use cases.

        Args:
            feed: the policies in force.
            counters: what is used.
            prices: what it costs; without any, tenants that have a budget are refused.
            now: the present in seconds since the epoch, which says what day it is.
            gate: the limit above all tenants; without it there is none.
            look_up: observes what the ledger has of a request; None without a ledger.
        """
        self._feed = feed
        self._counters = counters
        self._prices = prices or Prices()
        self._now = now
        self._gate = gate
        self._look_up = look_up

    async def reserve(self, tenant_id: str, order: Order, key_id: str = "", model: str = "") -> Decision:
        """Holds what a request may use at most; returns once it is held, with what the tenant is to be told.

        Raises:
            MeshError: NOT_FOUND or PERMISSION_DENIED for the tenant, INVALID_ARGUMENT for a request that no wait makes room for,
                RESOURCE_EXHAUSTED naming every limit without room, or GLOBAL_LIMIT, ALREADY_EXISTS, UNAVAILABLE.
        """
        tenant = self._tenant(tenant_id)
        if tenant.suspended:
            raise MeshError(
                Code.PERMISSION_DENIED, "TENANT_SUSPENDED", f"tenant {tenant_id} is suspended; ask the operator"
            )
        key, now_s = self._key(tenant_id, key_id), self._now()
        asked = Usage(1, order.prompt_tokens, order.max_completion_tokens)
        most = self._prices.most(tenant, key, model, asked, now_s)
        rows = rows_of(tenant, replace(asked, cost_nano_usd=most), now_s, key, model)
        oversized = [row for row in rows if not row.has_room(0)]
        if oversized:
            raise _too_large(oversized)
        if self._gate is not None:
            try:
                await self._gate.enter(order.request_id)
            except MeshError as error:
                # Without the store nobody knows what all replicas let pass; a tenant that fails open goes on to its local share.
                if error.code is not Code.UNAVAILABLE or tenant.loss_policy is not LossPolicy.FAIL_OPEN:
                    raise
        decision = await self._counters.reserve(tenant_id, order, rows)
        if decision.outcome is Outcome.REFUSED:
            raise out_of_quota(decision.violations, decision.retry_after_ms)
        if decision.outcome is Outcome.TAKEN:
            raise _taken(order)
        killpoints.reached("quota.after_reserve")
        return decision

    async def charge(
        self, tenant_id: str, order: Order, admitted_s: float, key_id: str, model: str, *, orphaned: bool
    ) -> Decision:
        """Holds what a router has admitted by itself, whether or not there is room.

        Args:
            tenant_id, order, key_id, model: as for `reserve`.
            admitted_s: when it did, in seconds since the epoch.
            orphaned: whether that life of the router is over, so that the ledger may say how the request ended, and has said so.

        Raises:
            MeshError: NOT_FOUND for the tenant, ALREADY_EXISTS, UNAVAILABLE.
        """
        tenant, key, now_s = self._tenant(tenant_id), self._key(tenant_id, key_id), min(admitted_s, self._now())
        asked = Usage(1, order.prompt_tokens, order.max_completion_tokens)
        most = self._prices.most(tenant, key, model, asked, now_s)
        rows = rows_of(tenant, replace(asked, cost_nano_usd=most), now_s, key, model)
        decision = await self._counters.reserve(tenant_id, order, charged(rows, self._now()))
        if decision.outcome is Outcome.TAKEN:
            raise _taken(order)
        if orphaned and self._look_up is not None:
            await self._look_up(order.request_id)
        return decision

    async def settle(self, lease: Lease, used: Usage, model: str = "") -> bool:
        """Replaces a reservation by what was used; returns whether this settlement was the one that counted.

        The tenant may be gone by now: what it holds is settled all the same. A reservation that the counters have lost is taken
        in first, so that the settlement counts in them and not in the ledger's sum (`forebay.quota.domain.rebuild`).

        Raises:
            MeshError: UNAVAILABLE, also when a budget is to be kept and no price is known yet.
        """
        tenant_id, request_id = lease.tenant_id, lease.request_id
        if self._gate is not None:
            await self._gate.entered(request_id)
        tenant = self._feed.policies.tenants.get(tenant_id)
        if tenant is not None and used.requests:
            key = self._key(tenant_id, lease.hold.key_id) if lease.hold is not None else None
            used = replace(used, cost_nano_usd=self._prices.cost(tenant, key, model, used, self._now()))
        amounts = amounts_of(used)
        applied = await self._counters.settle(tenant_id, request_id, amounts)
        if not applied and await self._restore(lease):
            applied = await self._counters.settle(tenant_id, request_id, amounts)
        killpoints.reached("quota.after_settle")
        return applied

    async def renew(self, router: Router, leases: Iterable[Lease]) -> list[str]:
        """Extends leases; returns the request ids of those that are lost.

        A tenant that is gone has lost its leases: nothing says any more what it may hold. What the counters have lost is taken
        in again. Of a tenant about which nothing can be said now, no lease is extended or lost: it holds up nobody else's.
        """
        by_id = {lease.request_id: lease for lease in leases}
        by_tenant: defaultdict[str, list[str]] = defaultdict(list)
        for request_id, lease in by_id.items():
            by_tenant[lease.tenant_id].append(request_id)
        keys: defaultdict[str, list[KeyPolicy]] = defaultdict(list)
        for key in self._feed.policies.keys.values():
            if key.limits.concurrent_requests is not None and key.tenant_id in by_tenant:
                keys[key.tenant_id].append(key)
        lost: list[str] = []
        calls = []
        for tenant_id, request_ids in by_tenant.items():
            if tenant_id not in self._feed.policies.tenants:
                lost += request_ids
            else:
                values = hold_values(self._tenant(tenant_id), keys[tenant_id])
                calls.append(self._counters.renew(tenant_id, router, request_ids, values))
        unknown = [request_id for lost_of_tenant in await _answered(calls) for request_id in lost_of_tenant or ()]
        for at in range(0, len(unknown), RESTORED_AT_ONCE):
            some = unknown[at : at + RESTORED_AT_ONCE]
            restored = await _answered([self._restore(by_id[request_id]) for request_id in some])
            lost += [request_id for request_id, held in zip(some, restored, strict=True) if held is False]
        return lost

    async def over_budget(self, leases: Iterable[Lease]) -> list[str]:
        """Returns the request ids, of those leases, that are to be stopped in mid-stream.

        They are those of tenants that want it so and are above a budget, be it the tenant's, the key's or that on the model: it
        was lowered, or what ran cost more than was held. Where that is not known, streams go on, and so do those that cost
        nothing.
        """
        by_budgets: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
        for lease in leases:
            tenant = self._feed.policies.tenants.get(lease.tenant_id)
            if tenant is not None and tenant.stop_on_budget and not self._is_free(tenant, lease.hold):
                by_budgets[self._budgets_of(tenant, lease.hold)].append(lease.request_id)
        peeked = await _answered(self.peek(*whose) for whose in by_budgets)
        return [
            request_id
            for states, request_ids in zip(peeked, by_budgets.values(), strict=True)
            if any(state.limit in BUDGETS and state.used > state.value for state in states or ())
            for request_id in request_ids
        ]

    def _is_free(self, tenant: TenantPolicy, hold: Hold | None) -> bool:
        if hold is None or self._prices.table is None:
            return False
        key = self._key(tenant.tenant_id, hold.key_id)
        asked = Usage(1, hold.order.prompt_tokens, hold.order.max_completion_tokens)
        return self._prices.most(tenant, key, hold.model, asked, self._now()) == 0

    def _budgets_of(self, tenant: TenantPolicy, hold: Hold | None) -> tuple[str, str, str]:
        """Returns the tenant, and of a hold the key and the model if they have budgets of their own."""
        if hold is None:
            return tenant.tenant_id, "", ""
        key = self._key(tenant.tenant_id, hold.key_id)
        return (
            tenant.tenant_id,
            hold.key_id if key is not None and has_budget(key.limits) else "",
            hold.model if has_budget(tenant.model_limits.get(hold.model, Limits())) else "",
        )

    async def peek(self, tenant_id: str, key_id: str = "", model: str = "") -> Sequence[LimitState]:
        """Returns the state of a tenant's limits, and of those of a key and on a model; NOT_FOUND without such a tenant."""
        tenant = self._tenant(tenant_id)
        rows = rows_of(tenant, _NOTHING, self._now(), self._key(tenant_id, key_id), model)
        return await self._counters.peek(tenant_id, rows)

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of what a tenant holds, in order of the request id; NOT_FOUND when there is no such tenant."""
        self._tenant(tenant_id)
        return await self._counters.reservations(tenant_id, after, most)

    async def _restore(self, lease: Lease) -> bool:
        """Takes in again what the counters have lost; returns whether it is held now."""
        tenant, hold = self._feed.policies.tenants.get(lease.tenant_id), lease.hold
        if tenant is None or hold is None:
            return False
        # A router whose clock is ahead would open a day before its time, and what counts in the present one would be gone.
        key, at_s = self._key(lease.tenant_id, hold.key_id), min(hold.reserved_at_s, self._now())
        asked = Usage(1, hold.order.prompt_tokens, hold.order.max_completion_tokens)
        most = self._prices.most(tenant, key, hold.model, asked, at_s)
        rows = rows_of(tenant, replace(asked, cost_nano_usd=most), at_s, key, hold.model)
        return await self._counters.restore(lease.tenant_id, hold.order, round(at_s * 1000), rows)

    def _key(self, tenant_id: str, key_id: str) -> KeyPolicy | None:
        key = self._feed.policies.keys.get(key_id)
        return key if key is not None and key.tenant_id == tenant_id else None

    def _tenant(self, tenant_id: str) -> TenantPolicy:
        tenant = self._feed.policies.tenants.get(tenant_id)
        if tenant is None:
            raise tenant_not_found(tenant_id)
        return effective_limits(tenant, self._now())


async def _answered(calls: Iterable[Awaitable[T]]) -> list[T | None]:
    """Returns the answers, None for those about a tenant of which nothing can be said now; raises once all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            if not isinstance(answer, MeshError) or answer.reason not in _ONE_TENANTS:
                raise answer
            log.warning("leases passed over", error=answer.message)
    return [None if isinstance(answer, BaseException) else answer for answer in answers]


def tenant_not_found(tenant_id: str) -> MeshError:
    """Returns the error for a tenant that does not exist."""
    return MeshError(Code.NOT_FOUND, "TENANT_NOT_FOUND", f"there is no tenant {tenant_id!r}")


def _taken(order: Order) -> MeshError:
    return MeshError(
        Code.ALREADY_EXISTS,
        "REQUEST_ID_TAKEN",
        f"request {order.request_id} is held by another router, or was by this one before it restarted; use a new request_id",
    )


def _too_large(rows: Sequence[Row]) -> MeshError:
    needs = [
        f"it may take {amount(row.limit, row.amount)}, and {subject(row.subject)} may use "
        f"{limit_value(row.limit, row.value or 0)}"
        for row in rows
    ]
    return MeshError(
        Code.INVALID_ARGUMENT,
        "LARGER_THAN_LIMIT",
        f"the request is larger than a limit: {'; '.join(needs)}; shorten the prompt or lower max_tokens",
        field_violations=[FieldViolation("max_completion_tokens", need) for need in needs],
        metadata={row.limit: str(row.value) for row in rows},
    )
