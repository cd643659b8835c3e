"""Limits that rise by steps."""

from __future__ import annotations

import pytest

from forebay.errors import Code, MeshError
from forebay.policy.messages import from_pb_tenant, to_pb_tenant
from forebay.policy.model import Canary, CanaryStep, Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.canary import effective_limits
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import PriceTable
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.service import Quota
from forebay.testing.clock import FakeClock

STEPS = (CanaryStep(10, 60), CanaryStep(50, 3_600))


def tenant(started_at: float) -> TenantPolicy:
    limits = Limits(requests_per_minute=30, concurrent_requests=2, daily_budget_nano_usd=0)
    of_model = {"m": Limits(tokens_per_minute=1_000)}
    canary = Canary(started_at, STEPS)
    return TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=limits, model_limits=of_model, canary=canary)


@pytest.mark.parametrize(
    ("after", "requests", "concurrent", "tokens"),
    [(0, 3, 1, 100), (59.9, 3, 1, 100), (60, 15, 1, 500), (3_659, 15, 1, 500), (3_660, 30, 2, 1_000), (-5, 3, 1, 100)],
)
def test_limits_rise_to_the_tenants_own(after: float, requests: int, concurrent: int, tokens: int) -> None:
    in_force = effective_limits(tenant(1_000.0), 1_000.0 + after)
    assert (in_force.limits.requests_per_minute, in_force.limits.concurrent_requests) == (requests, concurrent)
    assert in_force.limits.tokens_per_minute is None  # no limit has no share
    assert in_force.limits.daily_budget_nano_usd == 0
    assert in_force.model_limits["m"].tokens_per_minute == tokens


def test_a_schedule_crosses_the_wire() -> None:
    assert from_pb_tenant(to_pb_tenant(tenant(1_000.5))) == tenant(1_000.5)


async def test_reservations_are_held_to_the_step(clock: FakeClock) -> None:
    feed = PolicyFeed(Policies({"acme": tenant(clock.now())}), clock)
    free = Prices(PriceTable([]))
    quota = Quota(feed, InMemoryCounters(Terms(), lambda: int(clock.now() * 1000)), free, clock.now)
    router = Router("router-1", 1)
    await quota.reserve("acme", Order("a" * 32, router, 1, 1))
    with pytest.raises(MeshError) as caught:
        await quota.reserve("acme", Order("b" * 32, router, 1, 1))
    assert (caught.value.code, caught.value.quota_violations[0].value) == (Code.RESOURCE_EXHAUSTED, 1)
    clock.advance(60 + 3_600)
    await quota.reserve("acme", Order("c" * 32, router, 1, 1))
