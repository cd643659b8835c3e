"""A plan follows from its seed, and holds what a run must show."""

from __future__ import annotations

from collections import Counter

from forebay.killpoints import POINTS

from .plan import KINDS, TENANTS, make_plan
from .undisturbed import undisturbed_answers

PLAN = make_plan(1, requests=1_000, kills=3, points=sorted(POINTS))


def test_a_seed_decides_everything() -> None:
    assert make_plan(1, requests=1_000, kills=3, points=sorted(POINTS)) == PLAN
    assert make_plan(2, requests=1_000, kills=3, points=sorted(POINTS)) != PLAN


def test_every_kind_of_process_is_killed_and_every_point_armed() -> None:
    kills = Counter(kind for disruption in PLAN.disruptions if not disruption.point for kind in disruption.kinds)
    assert set(kills) == set(KINDS)
    assert min(kills.values()) >= 3
    assert PLAN.points == set(POINTS)
    assert any(disruption.kinds == {"router", "worker"} for disruption in PLAN.disruptions)
    assert any(disruption.kinds == set(KINDS) for disruption in PLAN.disruptions)
    times = [disruption.at for disruption in PLAN.disruptions]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < len(PLAN.asks)


def test_all_tenants_ask_and_three_clients_in_ten_leave() -> None:
    assert {ask.tenant for ask in PLAN.asks} == set(TENANTS)
    assert 250 < sum(ask.leaves_after is not None for ask in PLAN.asks) < 350


async def test_answers_are_of_every_kind() -> None:
    asks = PLAN.asks[:100]
    answers = await undisturbed_answers(asks)
    whole = [len(answer.tokens) == ask.max_tokens for ask, answer in zip(asks, answers, strict=True)]
    assert 0 < sum(whole) < len(asks)
    assert all(answer.tokens and answer.text for answer in answers)
