"""Reports add up, and shares owed follow the tree of classes and weights."""

from __future__ import annotations

import pytest

from forebay.policy.model import Limits
from forebay.quota.domain.plans import Plan
from forebay.scheduler.domain.request import ServiceClass
from forebay.simulator.forebay_dispatcher import Standing
from forebay.simulator.loop import Outcome, Served
from forebay.simulator.measures import owed_by_class
from forebay.simulator.report import report
from forebay.simulator.scenarios import Scenario
from forebay.simulator.workload import Arrival

STANDINGS = {
    "gold-3": Standing(ServiceClass.GOLD, 3000),
    "gold-2": Standing(ServiceClass.GOLD, 2000),
    "silver": Standing(ServiceClass.SILVER),
    "bronze": Standing(ServiceClass.BRONZE),
}


def test_classes_divide_first_and_then_their_clients() -> None:
    service = {"gold-3": 40.0, "gold-2": 20.0, "silver": 20.0, "bronze": 20.0}
    due = owed_by_class(service, STANDINGS, dict.fromkeys(service, 1e9))
    assert due == pytest.approx({"gold-3": 30.0, "gold-2": 20.0, "silver": 30.0, "bronze": 20.0})


def test_what_one_does_not_want_goes_to_its_class_first() -> None:
    service = {"gold-3": 10.0, "gold-2": 40.0, "silver": 50.0, "bronze": 0.0}
    demand = {"gold-3": 10.0, "gold-2": 1e9, "silver": 1e9, "bronze": 0.0}
    due = owed_by_class(service, STANDINGS, demand)
    # Bronze wants nothing, so gold and silver share 50 to 30; gold's 62.5 are ten for the one and the rest for the other.
    assert due == pytest.approx({"gold-3": 10.0, "gold-2": 52.5, "silver": 37.5, "bronze": 0.0})


def served(client: str, at: float, *, refusal: str = "", done: bool = True) -> Served:
    one = Served(Arrival(at, client, 30, 10), 10, refusal)
    if not refusal and done:
        one.first_token_at, one.finished_at, one.generated = at + 0.5, at + 1.0, 10
    return one


def test_every_client_is_added_up() -> None:
    plan = Plan("basic", ServiceClass.BRONZE, 500, Limits(), 2_000_000_000, 90)
    requests = [
        served("a", 0.0),
        served("a", 1.0, refusal="tokens_per_minute"),
        served("a", 2.0, refusal="tokens_per_minute"),
        served("a", 3.0, refusal="concurrent_requests"),
        served("b", 4.0),
        served("b", 10.0, done=False),
    ]
    # What is served after the last arrival is no longer contended.
    service = {"a": [50.0], "b": [0.0] * 4 + [50.0] + [0.0] * 5 + [90.0]}
    told = report(Scenario([], plans={"a": plan}), Outcome(requests, 12.0, 0, 0, 0, [], [], service))
    a, b = told.clients
    assert (a.client, a.attempted, a.accepted) == ("a", 4, 1)
    assert a.refused == {"tokens_per_minute": 2, "concurrent_requests": 1}
    assert (a.tokens, a.cost_nano_usd, b.tokens, b.cost_nano_usd) == (40, 80_000, 40, None)
    assert (a.owed, a.received, b.owed, b.received) == (0.5, 0.5, 0.5, 0.5)
    assert (a.first_token.p50, told.jain) == (0.5, 1.0)


def test_what_comes_at_once_is_compared_until_half_of_it_is_served() -> None:
    service = {"a": [0.0, 0.0, 30.0, 20.0, 10.0], "b": [0.0, 0.0, 0.0, 10.0, 50.0]}
    told = report(Scenario([]), Outcome([served("a", 0.0), served("b", 0.0)], 5.0, 0, 0, 0, [], [], service))
    assert {client.client: client.received for client in told.clients} == {"a": 50 / 60, "b": 10 / 60}
