"""Counters, weights and the lift."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain import virtual_counters
from forebay.scheduler.domain.virtual_counters import RESOLUTION, VirtualCounters


@settings(max_examples=60)
@given(st.integers(1, 50_000_000), st.lists(st.integers(-(10**6), 10**9), max_size=40))
def test_a_counter_is_service_by_weight_with_no_error_that_adds_up(weight_milli: int, charges: list[int]) -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    flow = counters.flow("acme", weight_milli)
    for tenths in charges:
        counters.charge(flow, tenths)
    assert flow.service_tenths == sum(charges)
    assert flow.counter == sum(charges) * 1000 * RESOLUTION // weight_milli
    assert flow.virtual_tenths == Fraction(sum(charges) * 1000, weight_milli).__floor__()


def test_the_neediest_flow_is_the_one_with_least_service_for_its_weight() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    heavy, light = counters.flow("heavy", 3000), counters.flow("light", 1000)
    counters.enqueue(heavy, "h", (0.0, 1))
    counters.enqueue(light, "l", (0.0, 2))
    counters.charge(heavy, 299)
    counters.charge(light, 100)
    assert counters.neediest() is heavy
    counters.charge(heavy, 2)
    assert counters.neediest() is light


def test_a_flow_hands_out_the_longest_waiting_item_first() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    flow = counters.flow("acme", 1000)
    for item, place in (("second", (5.0, 1)), ("third", (5.0, 2)), ("first", (1.0, 3))):
        counters.enqueue(flow, item, place)
    order = []
    while flow.queue:
        order.append(flow.head)
        counters.dequeue(flow, flow.head)
    assert order == ["first", "second", "third"]


def test_a_flow_that_begins_to_wait_is_lifted_to_the_smallest_waiting_counter() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    low, high, late = (counters.flow(name, 1000) for name in ("low", "high", "late"))
    counters.enqueue(low, "a", (0.0, 1))
    counters.enqueue(high, "b", (0.0, 2))
    counters.charge(low, 500)
    counters.charge(high, 900)
    counters.enqueue(late, "c", (0.0, 3))
    assert late.counter == low.counter


def test_when_none_waits_the_last_to_leave_sets_the_level() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    first, second = counters.flow("first", 1000), counters.flow("second", 1000)
    counters.enqueue(first, "a", (0.0, 1))
    counters.dequeue(first, "a")
    counters.charge(first, 700)
    counters.enqueue(second, "b", (0.0, 2))
    assert second.counter == first.counter


def test_the_lift_never_lowers_a_counter() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    ahead, behind = counters.flow("ahead", 1000), counters.flow("behind", 1000)
    counters.charge(ahead, 900)
    counters.enqueue(behind, "b", (0.0, 1))
    counters.enqueue(ahead, "a", (0.0, 2))
    assert ahead.virtual_tenths == 900


def test_a_parked_item_does_not_wait_until_it_is_unparked() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    flow = counters.flow("acme", 1000)
    counters.enqueue(flow, "a", (0.0, 1))
    counters.park(flow, "a", (0.0, 1))
    assert counters.neediest() is None
    assert flow.queued == 1
    counters.unpark()
    assert counters.neediest() is flow
    assert flow.head == "a"


def test_another_weight_counts_from_then_on() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    flow = counters.flow("acme", 1000)
    counters.charge(flow, 100)
    counters.charge(counters.flow("acme", 2000), 100)
    assert flow.virtual_tenths == 150


def test_of_many_idle_flows_the_longest_idle_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_counters, "MAX_IDLE_FLOWS", 2)
    counters: VirtualCounters[str] = VirtualCounters()
    running = counters.flow("running", 1000)
    counters.begin(running)
    flows = {name: counters.flow(name, 1000) for name in ("a", "b", "c")}
    assert counters.flow("running", 1000) is running
    assert counters.flow("c", 1000) is flows["c"]
    assert counters.flow("a", 1000) is not flows["a"]
