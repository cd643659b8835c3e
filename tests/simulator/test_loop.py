"""The loop: who hears what when, and what is counted."""

from __future__ import annotations

import pytest

from forebay.simulator.baselines import Baseline, Fcfs, PushAll
from forebay.simulator.dispatcher import Ask, Evict, Orders, Refusal, Report, Start
from forebay.simulator.engine import EngineShape
from forebay.simulator.loop import Admission, Outcome, Setting, Simulation
from forebay.simulator.workload import Arrival
from forebay.worker.domain.step_cost import StepCost

# A step takes a second, and word a tenth of one.
SHAPE = EngineShape(kv_tokens=100, block_tokens=10, max_model_len=60, cost=StepCost(1.0, 0.0, 0.0, 0.0))
SETTING = Setting(shape=SHAPE, delay_s=0.25, max_tokens=20)


class Scripted:
    """Does what is written for the tick after each call, and notes what it hears."""

    def __init__(self, **orders: Orders) -> None:
        self.orders = orders
        self.heard: list[tuple[float, Report]] = []
        self.asked: list[tuple[float, Ask]] = []
        self._next: list[Orders] = []

    def submit(self, ask: Ask, now: float) -> None:
        self.asked.append((now, ask))
        self._next.append(self.orders.get(f"asked_{len(self.asked)}", Orders()))

    def reported(self, report: Report, now: float) -> None:
        self.heard.append((now, report))
        self._next.append(self.orders.get(f"heard_{len(self.heard)}", Orders()))

    def tick(self, now: float) -> Orders:
        told, self._next = self._next, []
        merged = Orders()
        for orders in told:
            merged.starts += orders.starts
            merged.evictions += orders.evictions
            merged.refusals += orders.refusals
        return merged


def test_word_takes_its_time_both_ways() -> None:
    script = Scripted(asked_1=Orders(starts=[Start(0, 0)]))
    outcome = Simulation([Arrival(1.0, "a", 10, 2)], script, SETTING).run()
    (served,) = outcome.served
    assert (served.started_at, served.first_token_at, served.finished_at) == (1.0, 2.25, 3.25)
    assert [(at, report.progress, report.finished) for at, report in script.heard] == [
        (2.5, [(0, 1)], []),
        (3.5, [(0, 2)], [(0, 2)]),
    ]
    assert outcome.ended_at == 3.5
    assert outcome.busy == pytest.approx([0, 0.75, 1, 0.25])  # two steps, from 1.25 to 3.25
    assert outcome.kv == pytest.approx([0, 0.75 * 0.1, 0.25 * 0.1 + 0.75 * 0.2, 0.25 * 0.2])
    assert outcome.service == {"a": [0, 0, 10 + 2, 2]}


def test_an_answer_is_no_longer_than_what_was_asked_for() -> None:
    outcome = Simulation([Arrival(0.0, "a", 10, 50)], Baseline(Fcfs(), PushAll()), SETTING).run()
    assert outcome.served[0].generated == 20
    assert Setting(shape=SHAPE, max_tokens=1_000).asked(Arrival(0.0, "a", 10, 1)) == 50


def test_what_is_sent_during_a_step_begins_with_the_next() -> None:
    arrivals = [Arrival(0.0, "a", 10, 3), Arrival(0.5, "a", 10, 1)]
    outcome = Simulation(arrivals, Baseline(Fcfs(), PushAll()), SETTING).run()
    assert outcome.served[1].first_token_at == 0.25 + 1 + 1


def test_an_evicted_request_goes_on_where_it_was() -> None:
    script = Scripted(
        asked_1=Orders(starts=[Start(0, 0)]),
        heard_1=Orders(evictions=[Evict(0, 0)]),
        heard_2=Orders(),
        heard_3=Orders(starts=[Start(0, 0)]),
    )
    outcome = Simulation([Arrival(0.0, "a", 10, 5)], script, SETTING).run()
    (served,) = outcome.served
    # It gets a token while the word of its first travels, and is taken at the end of the step in which the order comes.
    assert [report.handed_over for _, report in script.heard[:3]] == [[], [], [(0, 2)]]
    assert (served.generated, served.evictions, outcome.evictions) == (5, 1, 1)
    assert served.first_token_at == 1.25
    assert outcome.recomputed_tokens == 11
    assert sum(outcome.service["a"]) == 10 + 2 * 5


def test_an_eviction_that_comes_too_late_changes_nothing() -> None:
    script = Scripted(
        asked_1=Orders(starts=[Start(0, 0)]), asked_2=Orders(evictions=[Evict(0, 0)], starts=[Start(1, 0)])
    )
    outcome = Simulation([Arrival(0.0, "a", 10, 1), Arrival(5.0, "a", 10, 1)], script, SETTING).run()
    assert outcome.evictions == 0
    assert outcome.served[1].generated == 1


def test_refusals_have_their_reasons() -> None:
    script = Scripted(asked_1=Orders(refusals=[Refusal(1, "queue_full")]))
    outcome = Simulation([Arrival(0.0, "a", 60, 1), Arrival(1.0, "a", 3, 1)], script, SETTING).run()
    assert [served.refusal for served in outcome.served] == ["too_large", "queue_full"]


def test_admission_stands_before_the_dispatcher_and_hears_the_end() -> None:
    class OneAtATime:
        inside = 0
        ends: list[tuple[int, float]] = []  # noqa: RUF012

        def refusal(self, id: int, arrival: Arrival, asked: int, now: float) -> str:
            if self.inside:
                return "concurrent"
            self.inside += 1
            return ""

        def ended(self, id: int, arrival: Arrival, generated: int, now: float) -> None:
            self.inside -= 1
            self.ends.append((generated, now))

    admission: Admission = OneAtATime()
    arrivals = [Arrival(0.0, "a", 10, 1), Arrival(1.0, "a", 10, 1), Arrival(2.0, "a", 10, 2)]
    outcome = Simulation(arrivals, Baseline(Fcfs(), PushAll()), SETTING, admission=admission).run()
    assert [served.refusal for served in outcome.served] == ["", "concurrent", ""]
    assert OneAtATime.ends == [(1, 1.5), (2, 4.5)]


def test_a_run_can_be_cut() -> None:
    setting = Setting(shape=SHAPE, delay_s=0.25, until_s=2.0)
    outcome = Simulation([Arrival(0.0, "a", 10, 9)], Baseline(Fcfs(), PushAll()), setting).run()
    assert outcome.ended_at == 2.0
    assert outcome.busy == [0.75, 1.0]  # the step that is under way is counted no further
    assert (outcome.served[0].generated, outcome.served[0].finished_at) == (1, None)


def test_progress_is_told_in_simulated_time() -> None:
    told: list[tuple[float, int]] = []

    def tell(now: float, ended: int) -> None:
        told.append((now, ended))

    Simulation([Arrival(0.0, "a", 10, 1)], Baseline(Fcfs(), PushAll()), SETTING, progress=tell).run()
    assert told[0] == (0.0, 0)
    assert 10 <= len(told) <= 20


def test_two_workers_share_the_work() -> None:
    arrivals = [Arrival(0.0, "a", 50, 5) for _ in range(4)]

    def ends(workers: int) -> Outcome:
        setting = Setting(shape=SHAPE, delay_s=0.25, workers=workers)
        return Simulation(arrivals, Baseline(Fcfs(), PushAll(), workers), setting).run()

    assert ends(2).ended_at < ends(1).ended_at
