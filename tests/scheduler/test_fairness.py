"""Law 4 on the core: fair within its bound, no credit for idleness, nothing left idle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain.flow import INPUT_TENTHS, OUTPUT_TENTHS
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.request import Request, ServiceClass

from .builders import WHOLE, Engine, flow, info, request, scheduler, tenant

KV = 240
SEQS = 10  # fewer than each keeps waiting, so that none of them ever runs out
ROOM = (
    60  # every request asks for as much, prompt and completion together, so that where one fits any does (no rule P8)
)

weights = st.integers(1, 8).map(lambda weight: weight * 1000)
shapes = st.integers(1, ROOM - 1).flatmap(lambda prompt: st.tuples(st.just(prompt), st.integers(1, ROOM - prompt)))


def bound(engine: Engine, weight: float = 1.0) -> float:
    """Law 4's 2 U / min(w), in tenths per unit of weight: reports come at once and nothing prefers a place, so R and Δ are 0."""
    return 2 * max(INPUT_TENTHS * ROOM, OUTPUT_TENTHS * (engine.most_tokens + SEQS)) / weight


def maker(prompt: int, length: int, weight_milli: int = 1000) -> Callable[[str], tuple[Request, int]]:
    """Makes requests of one shape, which ask for more than they will yield, since nobody knows the length before."""

    def make(tenant_id: str) -> tuple[Request, int]:
        asked = request(tenant_id, prompt_tokens=prompt, max_tokens=ROOM - prompt, weight_milli=weight_milli)
        return asked, length

    return make


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(weights, weights, shapes, shapes)
def test_two_that_always_wait_get_service_by_weight_within_the_bound(
    weight_a: int, weight_b: int, shape_a: tuple[int, int], shape_b: tuple[int, int]
) -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))
    gaps = []
    for _ in range(120):
        engine.flood("a", 12, maker(*shape_a, weight_a))
        engine.flood("b", 12, maker(*shape_b, weight_b))
        a, b = tenant(engine.core, "a"), tenant(engine.core, "b")
        gaps.append(1000 * (a.service_tenths / a.weight_milli - b.service_tenths / b.weight_milli))
        engine.step()
    smaller = min(weight_a, weight_b) / 1000
    # The gap over any interval is the difference of two of these.
    assert max(gaps) - min(gaps) <= bound(engine, smaller)


@pytest.mark.slow
def test_weights_three_to_one_give_service_three_to_one() -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))
    for _ in range(3200):
        engine.flood("a", 12, maker(20, 10, 3000))
        engine.flood("b", 12, maker(20, 10, 1000))
        engine.step()
    a, b = flow(engine.core, "a").service_tenths, flow(engine.core, "b").service_tenths
    tolerance = bound(engine) / b  # |a/3 - b| is at most the bound
    assert abs(a / 3 / b - 1) <= tolerance < 0.1


@pytest.mark.slow
def test_classes_weigh_fifty_to_thirty_to_twenty() -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))

    def make(tenant_id: str) -> tuple[Request, int]:
        return request(tenant_id, service_class=ServiceClass[tenant_id.upper()]), 10

    for _ in range(1000):
        for tenant_id in ("gold", "silver", "bronze"):
            engine.flood(tenant_id, 20, make)
        engine.step()
    service = {name: flow(engine.core, name).service_tenths for name in ("gold", "silver", "bronze")}
    total = sum(service.values())
    for name, share in (("gold", 0.5), ("silver", 0.3), ("bronze", 0.2)):
        assert abs(service[name] / total - share) < 0.02


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.integers(5, 120), shapes, shapes)
def test_idle_time_earns_nothing(idle_steps: int, shape_a: tuple[int, int], shape_b: tuple[int, int]) -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))
    for _ in range(idle_steps):
        engine.flood("busy", 12, maker(*shape_a))
        engine.step()
    engine.flood("busy", 12, maker(*shape_a))
    before = flow(engine.core, "busy").service_tenths
    for _ in range(80):
        engine.flood("busy", 12, maker(*shape_a))
        engine.flood("late", 12, maker(*shape_b))
        engine.step()
        engine.flood("busy", 1, maker(*shape_a))
        engine.flood("late", 1, maker(*shape_b))
        ahead = flow(engine.core, "late").service_tenths - (flow(engine.core, "busy").service_tenths - before)
        assert ahead <= bound(engine)


def test_a_tenant_that_floods_leaves_the_other_its_place() -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))
    engine.flood("aggressor", 500, maker(20, 10))
    for _ in range(20):
        engine.step()
    victim, engine_steps = maker(20, 10)("victim")
    engine.lengths[victim.key] = engine_steps
    engine.core.submit(victim, "r", engine.now)
    # The next room that comes free is the victim's: what runs takes 10 steps at most.
    for _ in range(10):
        engine.step()
        if victim.key in engine.started:
            return
    raise AssertionError("the victim waited for more than what ran before it")


def test_unused_share_goes_to_whoever_waits() -> None:
    engine = Engine(scheduler(info(kv_tokens=KV, max_num_seqs=SEQS)))
    engine.flood("alone", 30, maker(10, 10, weight_milli=1))
    engine.step()
    assert flow(engine.core, "alone").in_flight == KV // ROOM


def test_who_comes_while_another_waits_for_a_large_room_does_not_hold_up_those_who_are_served_meanwhile() -> None:
    core = scheduler(info("large"), info("small", kv_tokens=100), limits=Limits(queue_timeout_s=1e9, pool=WHOLE))
    engine = Engine(core)
    engine.flood("long", 1, lambda tenant_id: (request(tenant_id, prompt_tokens=1, max_tokens=900), 900))
    engine.step()
    engine.flood("patient", 1, lambda tenant_id: (request(tenant_id, prompt_tokens=990), 10))
    for _ in range(100):
        engine.flood("busy", 6, maker(10, 10))
        engine.step()
    assert flow(core, "patient").queued == 1
    before = flow(core, "busy").service_tenths
    for _ in range(40):
        engine.flood("busy", 6, maker(10, 10))
        engine.flood("late", 6, maker(10, 10))
        engine.step()
    assert flow(core, "busy").service_tenths - before >= flow(core, "late").service_tenths > 0
