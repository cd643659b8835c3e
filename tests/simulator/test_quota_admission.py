"""Tenants' limits in the simulator are the product's."""

from __future__ import annotations

import pytest

from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.simulator.quota_admission import QuotaAdmission
from forebay.simulator.workload import Arrival


def admission(**limits: int) -> QuotaAdmission:
    return QuotaAdmission({"a": TenantPolicy("a", "basic", ServiceClass.BRONZE, 500, limits=Limits(**limits))})


def ask(admission: QuotaAdmission, id: int, at: float, *, client: str = "a") -> str:
    return admission.refusal(id, Arrival(at, client, 10, 90), 90, at)


def test_requests_of_a_minute() -> None:
    one = admission(requests_per_minute=2)
    assert [ask(one, id, at) for id, at in enumerate((0.0, 1.0, 2.0, 62.0))] == ["", "", "requests_per_minute", ""]


def test_tokens_are_held_as_asked_and_settled_as_used() -> None:
    one = admission(tokens_per_minute=250)
    assert [ask(one, id, 0.0) for id in range(3)] == ["", "", "tokens_per_minute"]
    one.ended(0, Arrival(0.0, "a", 10, 90), 40, 1.0)
    assert ask(one, 3, 1.0) == ""


def test_what_never_started_gives_everything_back() -> None:
    one = admission(requests_per_minute=1)
    assert ask(one, 0, 0.0) == ""
    one.ended(0, Arrival(0.0, "a", 10, 90), 0, 1.0)
    assert ask(one, 1, 1.0) == ""


def test_requests_at_once() -> None:
    one = admission(concurrent_requests=1)
    assert [ask(one, 0, 0.0), ask(one, 1, 0.5)] == ["", "concurrent_requests"]
    one.ended(0, Arrival(0.0, "a", 10, 90), 90, 1.0)
    assert ask(one, 2, 1.0) == ""


@pytest.mark.parametrize("client", ["b", "c"])
def test_who_has_no_policy_has_no_limit(client: str) -> None:
    assert ask(admission(requests_per_minute=1), 0, 0.0, client=client) == ""
