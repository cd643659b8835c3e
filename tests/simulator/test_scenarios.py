"""Scenarios are what they are called."""

from __future__ import annotations

from collections import Counter

import pytest

from forebay.policy.model import Limits, ServiceClass
from forebay.quota.domain.plans import Plan
from forebay.scheduler.domain.request import ServiceClass as SchedulerClass
from forebay.simulator.forebay_dispatcher import Standing
from forebay.simulator.scenarios import (
    FOUR_TENANTS,
    SCENARIOS,
    Scenario,
    four_tenants,
    random_schedule,
    victim,
    weights,
)
from forebay.simulator.workload import Arrival

PLANS = {
    name: Plan(name, service_class, weight, Limits(concurrent_requests=5), 1_000_000_000, 90)
    for name, service_class, weight in (
        ("basic", ServiceClass.BRONZE, 500),
        ("standard", ServiceClass.SILVER, 1000),
        ("premium", ServiceClass.GOLD, 2000),
        ("enterprise", ServiceClass.GOLD, 3000),
    )
}


def test_four_tenants_have_the_rates_and_sizes_of_their_plans() -> None:
    scenario = four_tenants(1, PLANS, seconds=400.0)
    for habit in FOUR_TENANTS:
        own = [arrival for arrival in scenario.arrivals if arrival.client == habit.plan]
        assert len(own) / 400 == pytest.approx(habit.per_second, rel=0.2)
        assert all(habit.tokens[0] <= one.prompt + one.output <= habit.tokens[1] for one in own)
        assert all(one.output <= one.max_tokens == habit.tokens[1] - one.prompt for one in own)
    assert scenario.standings["enterprise"].weight_milli == 3000
    assert scenario.standings["basic"].service_class.name == "BRONZE"
    assert scenario.policies["premium"].limits.concurrent_requests == 5


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_in_order_of_time_and_repeats(name: str) -> None:
    scenario = SCENARIOS[name](3, 50.0)
    assert scenario.arrivals == sorted(scenario.arrivals, key=lambda arrival: arrival.at)
    assert scenario == SCENARIOS[name](3, 50.0)


def test_the_victim_is_the_quiet_one() -> None:
    asked = Counter(arrival.client for arrival in victim(1).arrivals)
    assert 60 < asked["victim"] < 130
    assert 2_200 < asked["aggressor"] < 2_600


def test_weights_are_one_to_four() -> None:
    assert sorted(weights(1, 10.0).weights.values()) == [1.0, 2.0, 3.0, 4.0]


def test_random_schedules_differ_and_fit_their_engines() -> None:
    schedules = [random_schedule(seed) for seed in range(20)]
    assert len({len(schedule.arrivals) for schedule in schedules}) > 5
    for schedule in schedules:
        shape = schedule.setting.shape
        most = max(one.prompt + schedule.setting.asked(one) for one in schedule.arrivals)
        assert most <= min(shape.max_model_len, shape.kv_tokens)
    sizes = {(one.prompt, one.max_tokens) for one in schedules[0].arrivals}
    assert len(sizes) > 5
    assert any(standing.tenant for schedule in schedules for standing in schedule.standings.values())


def test_a_way_leads_from_the_class_to_the_key() -> None:
    standings = {"key": Standing(SchedulerClass.GOLD, 500, "tenant")}
    scenario = Scenario([Arrival(0.0, "key", 1, 1), Arrival(0.0, "other", 1, 1)], standings=standings)
    assert scenario.ways == {
        "key": (("GOLD", 50.0), ("tenant", 0.5), ("key", 1.0)),
        "other": (("SILVER", 30.0), ("other", 1.0), ("other", 1.0)),
    }
