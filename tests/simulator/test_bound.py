"""The account of law 4: gaps of pairs, while both wait, by weight."""

from __future__ import annotations

import pytest

from forebay.simulator.baselines import Baseline, EngineWaiting, Fcfs, LeastServed
from forebay.simulator.bound import Watched, bound
from forebay.simulator.dispatcher import Ask, Orders, Refusal, Report, Start
from forebay.simulator.engine import EngineShape
from forebay.simulator.loop import Setting, Simulation
from forebay.simulator.scenarios import adversary, random_schedule
from forebay.simulator.schedulers import FOREBAY, SCHEDULERS
from forebay.simulator.workload import Arrival


class Obedient:
    """Starts or refuses what it is told to."""

    def __init__(self) -> None:
        self.next = Orders()

    def submit(self, ask: Ask, now: float) -> None: ...

    def reported(self, report: Report, now: float) -> None: ...

    def tick(self, now: float) -> Orders:
        orders, self.next = self.next, Orders()
        return orders


@pytest.fixture
def told() -> tuple[Obedient, Watched]:
    inner = Obedient()
    return inner, Watched(inner, {"b": 2.0, "c": 4.0})


def ask(watched: Watched, *clients: str, first: int = 0) -> None:
    for number, client in enumerate(clients, first):
        watched.submit(Ask(number, client, 100, 50), 0.0)


def start(told: tuple[Obedient, Watched], *ids: int) -> None:
    told[0].next = Orders(starts=[Start(id, 0) for id in ids])
    told[1].tick(0.0)


def test_the_gap_is_that_of_two_who_wait_times_the_smaller_weight(told: tuple[Obedient, Watched]) -> None:
    ask(told[1], "b", "b", "c", "c")
    start(told, 0)  # b has 100 / 2
    assert told[1].largest == 50 * 2
    start(told, 2)  # c has 100 / 4, and the gap shrinks to 25
    told[1].reported(Report(0, progress=[(2, 80)]), 1.0)  # c has 260 / 4: from +50 to -15
    assert told[1].largest == 65 * 2


def test_what_is_served_while_one_of_them_does_not_wait_is_no_gap(told: tuple[Obedient, Watched]) -> None:
    ask(told[1], "a", "a")
    start(told, 0)
    ask(told[1], "b", first=2)
    assert told[1].largest == 0
    start(told, 2)  # b's last that waits: up to here, both did
    assert told[1].largest == 50
    told[1].reported(Report(0, progress=[(2, 500)]), 1.0)
    assert told[1].largest == 50


def test_a_token_counts_once_through_progress_end_and_eviction(told: tuple[Obedient, Watched]) -> None:
    ask(told[1], "a", "a", "d", "d")
    start(told, 0)
    told[1].reported(Report(0, progress=[(0, 5)], handed_over=[(0, 5)]), 1.0)
    start(told, 0)  # it goes on; its prompt was counted before
    told[1].reported(Report(0, progress=[(0, 6)], finished=[(0, 6)]), 1.0)
    assert told[1].largest == 100 + 2 * 6


def test_who_is_refused_waits_no_more(told: tuple[Obedient, Watched]) -> None:
    ask(told[1], "a", "a", "d")
    told[0].next = Orders(refusals=[Refusal(2, "shed")])
    told[1].tick(0.0)
    start(told, 0)
    assert told[1].largest == 0


def test_first_come_first_served_breaks_the_bound_and_counters_do_not() -> None:
    shape = EngineShape(kv_tokens=1_600, max_model_len=300)
    pairs = [(Arrival(0.05 * n, "long", 10, 200), Arrival(0.05 * n, "short", 10, 10)) for n in range(400)]
    arrivals = [arrival for pair in pairs for arrival in pair]
    limit = bound(shape, 1, 10)
    largest = {}
    for order in (Fcfs(), LeastServed()):
        watched = Watched(Baseline(order, EngineWaiting(2)))
        Simulation(arrivals, watched, Setting(shape, until_s=20.0)).run()
        largest[type(order)] = watched.largest
    assert largest[LeastServed] < limit < largest[Fcfs]


def test_the_core_keeps_the_bound_on_random_schedules() -> None:
    for seed in range(5):
        scenario = random_schedule(seed)
        watched = Watched(SCHEDULERS[FOREBAY](scenario), scenario.weights)
        Simulation(scenario.arrivals, watched, scenario.setting).run()
        assert watched.largest <= bound(scenario.setting.shape, 1, max(arrival.prompt for arrival in scenario.arrivals))


@pytest.mark.slow
def test_the_bound_says_something() -> None:
    scenario = adversary(1)
    watched = Watched(SCHEDULERS[FOREBAY](scenario))
    Simulation(scenario.arrivals, watched, scenario.setting).run()
    limit = bound(scenario.setting.shape, 1, 1)
    assert limit / 4 < watched.largest <= limit
