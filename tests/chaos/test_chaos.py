"""Small runs of `make chaos`: a death at each kill point, a router and a worker that die together, and once everything does;
and some of every other kind of strike."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.killpoints import POINTS

from .plan import LOST_PAUSE_S, Disruption, Strike, make_plan, other_strikes
from .run import Targets, run_chaos, shortfalls, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("chaos")]

REQUESTS = 140
SEED = 3


# The longest take too long here.
LONGEST_S = 5.0


def test_kill_anything_lose_nothing(tmp_path: Path) -> None:
    plan = make_plan(SEED, REQUESTS, kills=0, points=sorted(POINTS))
    verdict = run_chaos(tmp_path, plan, concurrency=16, load_within_s=450.0, say=print)
    print(table(verdict))
    assert not shortfalls(verdict, Targets(completed=REQUESTS // 2, continued=3, kills_min=1))


def test_strike_anything_lose_nothing(tmp_path: Path) -> None:
    plan = make_plan(SEED, REQUESTS, kills=0, points=[], others=[*filter(_short, other_strikes(SEED))])
    verdict = run_chaos(tmp_path, plan, concurrency=16, load_within_s=450.0, say=print)
    print(table(verdict))
    assert not shortfalls(verdict, Targets(completed=REQUESTS // 2, continued=1, kills_min=1))
    assert set(verdict.strikes) == {strike.value for strike in Strike}


def _short(disruption: Disruption) -> bool:
    """Whether a strike is short, or the long pause of a worker or a scheduler."""
    long = disruption.strike is Strike.PAUSE and len(disruption.names) == 1 and disruption.seconds < LOST_PAUSE_S
    return disruption.seconds <= LONGEST_S or (long and disruption.kinds <= {"worker", "scheduler"})
