"""The account of law 4: gaps of pairs, while both wait, by weight."""

from __future__ import annotations

import pytest

from forebay.simulator.baselines import Baseline, EngineWaiting, LeastServed, RoundRobin
from forebay.simulator.bound import Watched
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
    return inner, Watched(inner, {"b": (("b", 2.0),), "c": (("c", 4.0),)})


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


def test_the_bound_is_of_all_that_was_in_flight_at_a_time(told: tuple[Obedient, Watched]) -> None:
    ask(told[1], "a", "a", "d")
    start(told, 0, 1)
    told[1].reported(Report(0, progress=[(0, 5), (1, 7)], finished=[(1, 7)]), 1.0)
    assert told[1].bound == 2 * 2 * (105 + 107)
    start(told, 2)
    told[1].reported(Report(0, handed_over=[(0, 9)], progress=[(2, 1)]), 2.0)
    start(told, 0)
    told[1].reported(Report(0, finished=[(0, 30), (2, 60)]), 3.0)
    # The first two come to 130 and 107 tokens, and then the first and the third to 130 and 160.
    assert (told[1].most_in_flight, told[1].longest_prompt) == (290, 100)


@pytest.mark.slow
def test_turns_break_the_bound_and_counters_do_not() -> None:
    shape = EngineShape(kv_tokens=1_600, max_num_seqs=4, max_model_len=300)
    pairs = [(Arrival(0.01 * n, "long", 10, 100), Arrival(0.01 * n, "short", 10, 10)) for n in range(200)]
    arrivals = [arrival for pair in pairs for arrival in pair]
    shares = {}
    for order in (RoundRobin(), LeastServed()):
        watched = Watched(Baseline(order, EngineWaiting(2)))
        Simulation(arrivals, watched, Setting(shape)).run()
        shares[type(order)] = watched.share_of_bound
    assert shares[LeastServed] < 1 < shares[RoundRobin]


@pytest.mark.slow
def test_the_core_keeps_the_bound_on_random_schedules() -> None:
    for seed in range(5):
        scenario = random_schedule(seed)
        watched = Watched(SCHEDULERS[FOREBAY](scenario), scenario.ways)
        Simulation(scenario.arrivals, watched, scenario.setting).run()
        assert watched.share_of_bound <= 1


@pytest.mark.slow
def test_the_bound_says_something() -> None:
    scenario = adversary(1)
    watched = Watched(SCHEDULERS[FOREBAY](scenario), scenario.ways)
    Simulation(scenario.arrivals, watched, scenario.setting).run()
    assert 0.99 < watched.share_of_bound <= 1
