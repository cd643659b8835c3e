"""Law 4 on the core (docs/fairness.md): it holds on random schedules at every level of the tree, and on no broken core."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.room import RoomRules
from forebay.simulator.bound import Watched
from forebay.simulator.engine import EngineShape
from forebay.simulator.forebay_dispatcher import PATIENT, ForebayDispatcher, Standing
from forebay.simulator.loop import Setting, Simulation
from forebay.simulator.scenarios import Scenario
from forebay.simulator.workload import Arrival

from .broken_cores import BROKEN_CORES

SHAPES = ((1, 20), (20, 1), (8, 8))
"""Prompt and output tokens, as unlike as can be."""

EVEN = replace(
    PATIENT, pool=PoolRules(room=RoomRules(favoured_below=0.0), eviction=EvictionRules(after_s=float("inf")))
)
"""Rules by which any request of one size fits where another does, so that on several engines nobody is passed over."""


TELLING = range(26, 40)
"""Seeds among which each broken core fails early; lifting too far is the hardest to see, about one schedule in fifty tells."""


def schedule(seed: int) -> Scenario:
    """Up to four clients, each with much at once two times, on small engines; some are keys of one tenant."""
    chance = random.Random(seed)
    workers = chance.choice((1, 1, 2))
    shapes = SHAPES if workers == 1 else (chance.choice(SHAPES),)
    shared = Standing(chance.choice(list(ServiceClass)), chance.choice((500, 1000, 4000)), "shared")
    standings, arrivals = {}, []
    for client in ("a", "b", "c", "d")[: chance.randint(2, 4)]:
        own = Standing(chance.choice((ServiceClass.SILVER, ServiceClass.GOLD)), chance.choice((500, 1000, 4000)))
        standings[client] = chance.choice((own, own, shared))
        prompt, output = chance.choice(shapes)
        at = chance.choice((0.0, chance.uniform(0, 3)))
        for begins in (at, at + chance.uniform(0, 3)):
            arrivals += [Arrival(begins, client, prompt, output, output)] * chance.randint(1, 40)
    slots = chance.choice((1, 2, 4))
    shape = EngineShape(kv_tokens=16 * chance.randint(4, 16), max_num_seqs=slots, max_model_len=64)
    arrivals.sort(key=lambda arrival: arrival.at)
    return Scenario(arrivals, Setting(shape, workers, delay_s=chance.choice((0.0, 0.01, 0.1))), standings)


def hold(seeds: Iterable[int]) -> None:
    """Asserts that law 4's bound holds for all pairs of siblings in all of these schedules."""
    for scenario in map(schedule, seeds):
        assert share_of_bound(scenario) <= 1


def share_of_bound(scenario: Scenario) -> float:
    setting = scenario.setting
    limits = PATIENT if setting.workers == 1 else EVEN
    core = ForebayDispatcher(setting.shape, setting.workers, scenario.standings, limits)
    watched = Watched(core, scenario.ways)
    Simulation(scenario.arrivals, watched, scenario.setting).run()
    return watched.share_of_bound


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_holds(seed: int) -> None:
    hold([seed])


@pytest.mark.slow
def test_the_bound_holds_on_many_schedules() -> None:
    hold(range(8, 150))


@pytest.mark.parametrize("name", BROKEN_CORES)
def test_the_bound_fails_on_a_broken_core(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN_CORES[name])
    with pytest.raises(AssertionError):
        hold(TELLING)
