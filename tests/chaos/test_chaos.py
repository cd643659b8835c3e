"""A small run of `make chaos`: every kind of process dies once, a router and a worker together, and some kill points trip."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from forebay.killpoints import POINTS

from .plan import make_plan
from .run import Targets, run_chaos, shortfalls, table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

REQUESTS = 150
SEED = 3


def test_kill_anything_lose_nothing(tmp_path: Path) -> None:
    points = random.Random(SEED).sample(sorted(POINTS), 5)
    plan = make_plan(SEED, REQUESTS, kills=1, points=points)
    verdict = run_chaos(tmp_path / "data", plan, concurrency=16, say=print)
    print(table(verdict))
    assert not shortfalls(verdict, Targets(completed=REQUESTS // 2, continued=3, kills_min=1))
