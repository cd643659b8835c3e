"""Orders and gates, one at a time."""

from __future__ import annotations

from forebay.simulator.baselines import (
    Baseline,
    EngineWaiting,
    Fcfs,
    InFlight,
    InputDrr,
    LeastServed,
    Order,
    PushAll,
    RoundRobin,
    Vtc,
)
from forebay.simulator.dispatcher import Ask, Report


def fill(order: Order, *clients: str, prompt: int = 100) -> Order:
    for number, client in enumerate(clients):
        order.add(Ask(number, client, prompt, 10))
    return order


def drain(order: Order) -> str:
    taken = iter(order.take, None)
    return "".join(ask.client for ask in taken)


def test_first_come_first_served() -> None:
    assert drain(fill(Fcfs(), "a", "a", "b", "a")) == "aaba"


def test_round_robin_gives_each_a_turn() -> None:
    assert drain(fill(RoundRobin(), "a", "a", "a", "b", "c", "b")) == "abcaba"


def test_input_drr_counts_tokens_of_prompts() -> None:
    order = InputDrr()
    for number in range(3):
        order.add(Ask(number, "a", 512, 10))
    for number in range(3, 9):
        order.add(Ask(number, "b", 256, 10))
    # A quantum is one of the first kind or two of the second.
    assert drain(order) == "abbabbabb"
    assert order.take() is None


def test_input_drr_lets_a_long_prompt_save_up() -> None:
    order = InputDrr()
    order.add(Ask(0, "a", 1_200, 10))
    for number in range(1, 7):
        order.add(Ask(number, "b", 512, 10))
    assert drain(order).index("a") == 2


def test_input_drr_gives_whoever_follows_one_that_leaves_its_turn() -> None:
    assert drain(fill(InputDrr(), "a", "b", "c", "d")) == "abcd"


def serve(order: Order, *, cost: int) -> str:
    """Drains an order that is charged for each request it gives out."""
    clients = ""
    while (ask := order.take()) is not None:
        clients += ask.client
        order.charge(ask.client, cost)
    return clients


def test_least_served_pays_for_idleness_and_vtc_does_not() -> None:
    for order, expected in ((LeastServed(), "bbbaa"), (Vtc(), "ababb")):
        fill(order, "a", "a")
        order.charge("a", 1_000)
        fill(order, "b", "b", "b")
        assert serve(order, cost=10) == expected


def test_vtc_lifts_to_the_last_that_left_when_nobody_waits() -> None:
    order = fill(Vtc(), "a")
    order.charge("a", 1_000)
    order.take()
    fill(order, "b", "b", "a")
    assert serve(order, cost=10) == "bab"


def test_gates() -> None:
    report = Report(0, received=5, waiting=1)
    assert PushAll().open(10_000, report, 0)
    assert [InFlight(3).open(sent, report, 4) for sent in (6, 7)] == [True, False]
    # One waits there, and what is on its way counts as waiting.
    assert [EngineWaiting(3).open(sent, report, 0) for sent in (6, 7)] == [True, False]


def test_a_baseline_charges_what_it_hears_and_takes_the_emptiest_worker() -> None:
    order = LeastServed()
    baseline = Baseline(order, InFlight(1), workers=2)
    for number, client in enumerate("aab"):
        baseline.submit(Ask(number, client, 100, 10), 0.0)
    starts = baseline.tick(0.0).starts
    assert [(start.id, start.worker) for start in starts] == [(0, 0), (2, 1)]
    baseline.reported(Report(1, progress=[(2, 3)], finished=[(2, 3)]), 1.0)
    baseline.submit(Ask(3, "b", 100, 10), 1.0)
    # b has had 100 + 2 · 3, a 100.
    assert [(start.id, start.worker) for start in baseline.tick(1.0).starts] == [(1, 1)]
