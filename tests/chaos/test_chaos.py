"""A small run of `make chaos`: a death at each kill point, a router and a worker that die together, and once everything does."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.killpoints import POINTS

from .plan import make_plan
from .run import Targets, run_chaos, shortfalls, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("chaos")]

REQUESTS = 140
SEED = 3


def test_kill_anything_lose_nothing(tmp_path: Path) -> None:
    plan = make_plan(SEED, REQUESTS, kills=0, points=sorted(POINTS))
    verdict = run_chaos(tmp_path, plan, concurrency=16, load_within_s=450.0, say=print)
    print(table(verdict))
    assert not shortfalls(verdict, Targets(completed=REQUESTS // 2, continued=3, kills_min=1))
