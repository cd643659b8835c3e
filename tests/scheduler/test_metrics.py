"""What operators see of the core: shares, waits, room, and how many labels there are."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from forebay.lifecycle import background
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.overview import fairness, standings, waiting
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.worker import EngineState
from forebay.scheduler.metrics import MAX_TENANTS, OBSERVE_EVERY_S, OTHERS, count, observe, watch
from forebay.testing.clock import FakeClock

from .builders import WHOLE, grants, info, request, scheduler

DECISIONS = ("grants_total", "evictions_total")


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"forebay_{name}", labels)


def labels(name: str, label: str) -> set[str]:
    return {
        sample.labels[label]
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == f"forebay_{name}"
    }


@pytest.mark.slow
def test_it_tells_service_and_what_was_owed_and_how_fair_that_is() -> None:
    core = scheduler(info("w1", kv_tokens=40))
    served, waits = [request("acme") for _ in range(2)], request("globex")
    for each in served:
        core.submit(each, "r", 0.0)
    core.tick(0.0)
    core.submit(waits, "r", 0.0)
    for each in served:
        core.progress("w1", each.key, 10, prefilled=True)
    observe(core, 3.0)
    (pool,) = core.pools
    # Alone, acme is owed what it gets: its input. Of what came since globex waits, half.
    received = 2 * (10 + 2 * 10)
    assert value("tenant_service_tokens", tenant="acme") == received
    assert value("tenant_owed_tokens", tenant="acme") == 2 * 10 + 20
    assert value("tenant_service_tokens", tenant="globex") == 0
    assert value("tenant_owed_tokens", tenant="globex") == 20
    assert value("pool_fairness", model="m", pool="shared") == fairness(standings(pool)) == pytest.approx(0.5)
    assert (value("queue_requests", service_class="silver"), value("queue_oldest_seconds", service_class="silver")) == (
        1,
        3,
    )
    assert value("queue_requests", service_class="gold") == 0
    assert waiting(core, 3.0)[pool][ServiceClass.SILVER].oldest_s == 3.0


@pytest.mark.slow
def test_it_tells_how_full_workers_are_and_what_preemptions_cost() -> None:
    rules = PoolRules(room=RoomRules(alpha=0.9, preemption_cost=0.1))
    core = scheduler(info("w1", kv_tokens=100), limits=Limits(pool=rules))
    core.submit(request(), "r", 0.0)
    core.tick(0.0)
    core.engine_state("w1", EngineState())
    core.engine_state("w1", EngineState(kv_tokens_used=25, preemptions=2))
    observe(core, 1.0)
    assert value("worker_kv_used_ratio", worker="w1") == 0.25
    assert value("worker_kv_expected_ratio", worker="w1") == 0.2
    assert value("worker_slots_used_ratio", worker="w1") == 1 / 64
    assert value("worker_preemptions", worker="w1") == 2
    assert value("worker_alpha", worker="w1") == pytest.approx(0.7)
    observe(None, 2.0)
    assert value("worker_alpha", worker="w1") is None, "a follower has nothing to tell"


async def test_it_is_looked_at_each_second(clock: FakeClock) -> None:
    core = scheduler(info("w1"))
    async with background(watch(lambda: core, clock), "metrics"):
        await asyncio.sleep(0)
        core.submit(request(model="nobody's"), "r", 0.0)
        clock.advance(OBSERVE_EVERY_S)
        for _ in range(3):
            await asyncio.sleep(0)
        assert value("queue_requests", service_class="silver") == 1
    observe(None, 0.0)


def test_decisions_are_counted_and_refusals_by_reason() -> None:
    before = {name: value(f"scheduler_{name}") or 0 for name in DECISIONS}
    refused = value("scheduler_rejections_total", reason="TOO_LARGE") or 0
    core = scheduler(info("w1"))
    core.submit(request(), "r", 0.0)
    core.submit(request(max_tokens=5_000), "r", 0.0)
    decisions = core.tick(0.0)
    count(decisions)
    assert len(grants(decisions)) == 1
    assert {name: value(f"scheduler_{name}") for name in DECISIONS} == {
        "grants_total": before["grants_total"] + 1,
        "evictions_total": before["evictions_total"],
    }
    assert value("scheduler_rejections_total", reason="TOO_LARGE") == refused + 1


def test_tenants_beyond_the_bound_share_a_label() -> None:
    core = scheduler(info("w1", kv_tokens=100_000, max_num_seqs=1_000), limits=Limits(pool=WHOLE))
    for number in range(MAX_TENANTS + 20):
        core.submit(request(f"t{number}"), "r", 0.0)
    core.tick(0.0)
    observe(core, 0.0)
    shown = labels("tenant_service_tokens", "tenant")
    assert len(shown) == MAX_TENANTS + 1
    assert value("tenant_service_tokens", tenant=OTHERS) == 20 * 10
    observe(None, 0.0)
