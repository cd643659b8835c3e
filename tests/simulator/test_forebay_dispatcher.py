"""The real core behind the loop."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import pytest

from forebay.scheduler.domain.request import AttemptKey, Request, ServiceClass
from forebay.simulator.baselines import Baseline, EngineWaiting, Fcfs, PushAll, Vtc
from forebay.simulator.dispatcher import Ask, Evict, Report
from forebay.simulator.engine import EngineShape
from forebay.simulator.forebay_dispatcher import PATIENT, ForebayDispatcher, Standing
from forebay.simulator.loop import Setting, Simulation
from forebay.simulator.measures import fairness, service_of, tokens_per_second
from forebay.simulator.workload import chat, flood

SMALL = EngineShape(kv_tokens=1_600, max_model_len=400)


@pytest.mark.slow
def test_weights_divide_an_engine_that_is_too_small() -> None:
    arrivals = flood([("one", 40, 40), ("three", 40, 40)], 20.0, 2_000.0)
    standings = {"three": Standing(weight_milli=3000)}
    outcome = Simulation(
        arrivals, ForebayDispatcher(SMALL, standings=standings), Setting(SMALL, max_tokens=60, until_s=20.0)
    ).run()
    service = service_of(outcome, 5.0)
    assert service["three"] / service["one"] == pytest.approx(3.0, rel=0.1)
    assert outcome.preemptions == 0


def test_classes_divide_it_as_well() -> None:
    arrivals = flood([("gold", 40, 40), ("bronze", 40, 40)], 20.0, 2_000.0)
    standings = {"gold": Standing(ServiceClass.GOLD), "bronze": Standing(ServiceClass.BRONZE)}
    outcome = Simulation(
        arrivals, ForebayDispatcher(SMALL, standings=standings), Setting(SMALL, max_tokens=60, until_s=20.0)
    ).run()
    service = service_of(outcome, 5.0)
    assert service["gold"] / service["bronze"] == pytest.approx(2.5, rel=0.1)


def test_what_the_core_refuses_ends_with_its_reason() -> None:
    dispatcher = ForebayDispatcher(SMALL, limits=type(PATIENT)(max_queued_per_tenant=1))
    for id in range(2):
        dispatcher.submit(Ask(id, "a", 300, 100), 0.0)
    orders = dispatcher.tick(0.0)
    assert [(refusal.id, refusal.reason) for refusal in orders.refusals] == [(1, "queue_full")]
    assert [start.id for start in orders.starts] == [0]


def test_an_evicted_attempt_comes_back_as_the_next_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = ForebayDispatcher(SMALL)
    dispatcher.submit(Ask(0, "a", 100, 50), 1.0)
    dispatcher.tick(1.0)
    core: Any = dispatcher.core
    decided = core.tick(1.0)

    @dataclass
    class Eviction:
        key: AttemptKey
        worker_id: str

    class Decisions:
        batches = decided.batches
        rejections = decided.rejections
        evictions = (Eviction(AttemptKey("0", 1), "worker-0"),)

    monkeypatch.setattr(core, "tick", lambda now: Decisions)
    assert dispatcher.tick(2.0).evictions == [Evict(0, 0)]
    monkeypatch.undo()
    submitted: list[Request] = []
    submit = core.submit
    monkeypatch.setattr(core, "submit", lambda request, *rest: (submitted.append(request), submit(request, *rest)))
    dispatcher.reported(Report(0, handed_over=[(0, 7)], received=1), 3.0)
    (again,) = submitted
    assert again.key == AttemptKey("0", 2)
    assert (again.prompt_tokens, again.max_tokens, again.delivered_tokens, again.waited_s) == (107, 43, 7, 2.0)
    assert [start.id for start in dispatcher.tick(3.0).starts] == [0]
    # Its own tokens count from where it went on, and it ends once.
    dispatcher.reported(Report(0, progress=[(0, 8)]), 4.0)
    dispatcher.reported(Report(0, finished=[(0, 9)]), 5.0)
    assert dispatcher.tick(5.0).starts == []


@pytest.mark.slow
def test_chat_traffic_is_served_in_full_and_no_less_fairly_than_by_counters_alone() -> None:
    ours, theirs = [], []
    for seed in range(1, 6):
        arrivals = chat(seed, requests=400, seconds=160.0)
        forebay = Simulation(arrivals, ForebayDispatcher(EngineShape())).run()
        vtc = Simulation(arrivals, Baseline(Vtc(), EngineWaiting(2))).run()
        assert all(served.finished_at is not None for served in forebay.served)
        assert forebay.preemptions + forebay.evictions <= 0.05 * vtc.preemptions
        ours.append(fairness(forebay).avg_diff)
        theirs.append(fairness(vtc).avg_diff)
    # One short run says little: in some of them counters alone do a little better.
    assert statistics.fmean(ours) <= 0.95 * statistics.fmean(theirs)


@pytest.mark.slow
def test_pushing_everything_thrashes_and_serves_no_more() -> None:
    """The shape of the figures that the model was fitted to; the trace itself is not part of the project."""
    arrivals = chat(1)
    pushed = Simulation(arrivals, Baseline(Vtc(), PushAll())).run()
    gated = Simulation(arrivals, Baseline(Vtc(), EngineWaiting(2))).run()
    fcfs = Simulation(arrivals, Baseline(Fcfs(), EngineWaiting(2))).run()
    assert pushed.preemptions > 1_000
    assert 700 < tokens_per_second(pushed) < 900
    assert tokens_per_second(gated) > 0.98 * tokens_per_second(fcfs)
    assert fairness(gated).max_diff < 0.85 * fairness(pushed).max_diff
