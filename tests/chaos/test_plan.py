"""A plan follows from its seed, and holds what a run must show."""

from __future__ import annotations

from collections import Counter

import pytest

from forebay.killpoints import POINTS

from .plan import (
    KEEPERS,
    KINDS,
    PATIENT_S,
    SHARED_KEYS,
    TENANT_KEYS,
    TENANTS,
    Strike,
    kind_of,
    make_plan,
    other_strikes,
)
from .undisturbed import undisturbed_answers

PLAN = make_plan(1, requests=1_000, kills=3, points=sorted(POINTS), others=other_strikes(1))


@pytest.mark.slow
def test_a_seed_decides_everything() -> None:
    assert make_plan(1, requests=1_000, kills=3, points=sorted(POINTS), others=other_strikes(1)) == PLAN
    assert make_plan(2, requests=1_000, kills=3, points=sorted(POINTS), others=other_strikes(1)) != PLAN
    assert other_strikes(2) != other_strikes(1)


def test_every_kind_of_process_is_killed_and_every_point_armed() -> None:
    chosen = [strike for strike in PLAN.disruptions if strike.strike is Strike.KILL and not strike.point]
    kills = Counter(kind for strike in chosen for kind in strike.kinds)
    assert set(kills) == set(KINDS)
    assert min(kills.values()) >= 3
    assert PLAN.points == set(POINTS)
    assert any(strike.kinds == {"router", "worker"} for strike in chosen)
    assert any(strike.kinds == set(KINDS) for strike in chosen)
    times = [disruption.at for disruption in PLAN.disruptions]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < len(PLAN.asks)


def test_each_other_strike_is_made_on_each_kind_of_process_that_it_can_strike() -> None:
    strikes = {each: [strike for strike in PLAN.disruptions if strike.strike is each] for each in Strike}
    kinds = {each: {kind_of(name) for strike in strikes[each] for name in strike.names} for each in Strike}
    assert kinds[Strike.PAUSE] == {*KINDS, *KEEPERS}
    assert kinds[Strike.CLOCK] == kinds[Strike.FULL_DISK] == set(KINDS)
    assert kinds[Strike.FILE_SIZE] == {"router", "worker", "scheduler", "quota", "metering"}
    assert {strike.seconds for strike in strikes[Strike.PAUSE] if "valkey" in strike.names} >= {12.0}
    assert {strike.ahead_s > 0 for strike in strikes[Strike.CLOCK] if strike.names == ("valkey",)} == {True, False}
    keys = [strike.key for strike in strikes[Strike.LOST_KEY]]
    assert {key.partition("}:")[2] for key in keys} - {""} == set(TENANT_KEYS)
    assert set(SHARED_KEYS) < set(keys)
    assert all(
        strike.seconds > 0 for each in Strike if each not in (Strike.KILL, Strike.LOST_KEY) for strike in strikes[each]
    )


def test_some_clients_are_in_a_hurry() -> None:
    assert 20 < sum(ask.deadline_s < PATIENT_S for ask in PLAN.asks) < 80


def test_all_tenants_ask_and_three_clients_in_ten_leave() -> None:
    assert {ask.tenant for ask in PLAN.asks} == set(TENANTS)
    assert 250 < sum(ask.leaves_after is not None for ask in PLAN.asks) < 350


async def test_answers_are_of_every_kind() -> None:
    asks = PLAN.asks[:100]
    answers = await undisturbed_answers(asks)
    whole = [len(answer.tokens) == ask.max_tokens for ask, answer in zip(asks, answers, strict=True)]
    assert 0 < sum(whole) < len(asks)
    assert all(answer.tokens and answer.text for answer in answers)
