"""Routers that are all cut off: together they admit no more than the limits, however their requests come and end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import Code, MeshError
from forebay.policy.limits import LIMITS, Kind, Usage
from forebay.router.domain import local_share
from forebay.router.domain.local_share import WINDOW_S, Allowance, LocalAdmissions, LocalLimit, Order, Share

START = 1_700_000_000.0
PROMPT, COMPLETION = 5, 20
ASKED = Usage(1, PROMPT, COMPLETION)


def order(number: int, tenant_id: str = "acme", model: str = "tiny") -> Order:
    return Order(f"{number:032x}", tenant_id, "k1", model, PROMPT, COMPLETION)


def holder(*limits: tuple[str, int], tenant_id: str = "acme", **prices: int) -> LocalAdmissions:
    admissions = LocalAdmissions()
    rows = tuple(LocalLimit(f"tenant:{tenant_id}", limit, value) for limit, value in limits)
    admissions.share = Share(1, {tenant_id: Allowance(rows, **prices)})
    return admissions


def admitted(admissions: LocalAdmissions, numbers: range, now: float = START) -> int:
    count = 0
    for number in numbers:
        try:
            admissions.admit(order(number), now)
        except MeshError as error:
            if error.code is not Code.RESOURCE_EXHAUSTED:
                raise
        else:
            count += 1
    return count


VALUES = {
    "requests_per_second": 4,
    "requests_per_minute": 13,
    "tokens_per_minute": 300,
    "output_tokens_per_minute": 270,
    "concurrent_requests": 9,
    "tokens_per_day": 700,
    "daily_budget_nano_usd": 5_000,
}
PRICES = {"per_request": 10, "per_million_prompt_tokens": 1_000_000, "per_million_completion_tokens": 10_000_000}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(), routers=st.integers(1, 4), limits=st.sets(st.sampled_from(sorted(VALUES)), min_size=1))
def test_no_interleaving_at_cut_off_routers_exceeds_a_limit(seed: int, routers: int, limits: set[str]) -> None:
    chance = random.Random(seed)
    cut_off = [holder(*((each, VALUES[each] // routers) for each in limits), **PRICES) for _ in range(routers)]
    price = Allowance((), **PRICES)
    ran: dict[str, tuple[float, Usage, bool]] = {}  # when, what it took or used, whether it runs
    where: dict[str, LocalAdmissions] = {}
    now = START
    for number in range(120):
        now += chance.choice((0.0, 0.0, 0.1, 0.9, 7.0, 30.0))
        router = chance.choice(cut_off)
        running = [request_id for request_id, (_, _, runs) in ran.items() if runs]
        if running and chance.random() < 0.4:
            request_id = chance.choice(running)
            used = Usage(1, PROMPT, chance.randrange(COMPLETION + 1))
            where[request_id].settle(request_id, used, now)
            ran[request_id] = (ran[request_id][0], price.priced(used), False)
        else:
            try:
                router.admit(order(number), now)
            except MeshError:
                pass
            else:
                ran[order(number).request_id] = (now, price.priced(ASKED), True)
                where[order(number).request_id] = router
        for limit in LIMITS:
            if limit.name in limits:
                counts_for = {Kind.RATE: 1.0, Kind.WINDOW: 60.0}.get(limit.kind, 1e9)
                counted = [
                    limit.amount(usage)
                    for at, usage, runs in ran.values()
                    if now - at < counts_for and (runs or limit.kind is not Kind.HOLD)
                ]
                assert sum(counted) <= VALUES[limit.name], limit.name


def test_what_is_given_back_can_be_used_again() -> None:
    admissions = holder(("tokens_per_minute", 50), ("concurrent_requests", 2))
    assert admitted(admissions, range(4)) == 2
    admissions.settle(order(0).request_id, Usage(1, PROMPT, 0), START)
    assert admitted(admissions, range(4, 6)) == 0
    admissions.settle(order(1).request_id, Usage(0, 0, 0), START)
    assert admitted(admissions, range(6, 8)) == 1


def test_what_never_started_was_asked_for_in_its_second_all_the_same() -> None:
    admissions = holder(("requests_per_second", 1))
    admissions.admit(order(1), START)
    admissions.settle(order(1).request_id, Usage(0, 0, 0), START)
    assert admitted(admissions, range(2, 4)) == 0
    assert admitted(admissions, range(4, 6), START + 1) == 1


def test_a_minute_later_there_is_room_again_but_not_for_the_day() -> None:
    minute, day = holder(("requests_per_minute", 1)), holder(("tokens_per_day", 25))
    for admissions in (minute, day):
        assert admitted(admissions, range(2)) == 1
    assert admitted(minute, range(2, 4), START + WINDOW_S) == 1
    assert admitted(day, range(2, 4), START + WINDOW_S) == 0


def test_what_quota_has_charged_counts_for_another_minute() -> None:
    admissions = holder(("tokens_per_day", 25))
    assert admitted(admissions, range(1)) == 1
    admissions.settle(order(0).request_id, ASKED, START)
    admissions.charged(order(0).request_id, START)
    admissions.tidy(START + WINDOW_S - 1)
    assert admitted(admissions, range(1, 2), START + WINDOW_S - 1) == 0
    admissions.tidy(START + WINDOW_S)
    assert not admissions
    assert admitted(admissions, range(1, 2), START + WINDOW_S) == 1


def test_limits_of_models_of_keys_and_of_all_tenants_count_for_those_they_are_for() -> None:
    admissions = LocalAdmissions()
    small = LocalLimit("tenant:acme/model:small", "requests_per_minute", 1)
    everybody = LocalLimit("mesh", "requests_per_second", 2)
    admissions.share = Share(1, {"acme": Allowance((small, everybody)), "globex": Allowance((everybody,))})
    admissions.admit(order(1, model="small"), START)
    with pytest.raises(MeshError) as caught:
        admissions.admit(order(2, model="small"), START)
    assert [violation.subject for violation in caught.value.quota_violations] == ["tenant:acme/model:small"]
    admissions.admit(order(3), START)
    with pytest.raises(MeshError) as caught:
        admissions.admit(order(4, tenant_id="globex"), START)
    assert [violation.subject for violation in caught.value.quota_violations] == ["mesh"]


def test_who_has_no_allowance_or_one_that_is_not_understood_is_refused() -> None:
    admissions = holder(("tokens_per_fortnight", 10**9))
    for tenant_id in ("acme", "globex"):
        with pytest.raises(MeshError) as caught:
            admissions.admit(order(1, tenant_id), START)
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "QUOTA_UNAVAILABLE")


def test_an_earlier_life_counts_but_holds_no_place() -> None:
    limits = ("requests_per_minute", 2), ("concurrent_requests", 1)
    taken = holder(*limits).admit(order(1), START)
    admissions = holder(*limits)
    admissions.restore(order(1).request_id, taken, START)
    assert admitted(admissions, range(2, 4), START + 1) == 1
    assert admissions.last_at == START + 1


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_share, "MOST_REMEMBERED", 3)
    admissions = holder(("tokens_per_day", 10**9))
    for number in range(3):
        admissions.admit(order(number), START)
    with pytest.raises(MeshError) as caught:
        admissions.admit(order(4), START)
    assert caught.value.code is Code.UNAVAILABLE


def test_what_counts_no_longer_is_forgotten_whoever_is_forgotten_first() -> None:
    admissions = holder(("requests_per_second", 4), ("requests_per_minute", 2))
    assert admitted(admissions, range(3)) == 2
    assert admitted(admissions, range(3, 4), START + 2) == 0  # of the second nothing counts any more
    for number in range(2):
        admissions.charged(order(number).request_id, START + 3)
    admissions.settle(order(0).request_id, Usage(1, 1, 1), START)
    admissions.tidy(START + 3 + WINDOW_S)
    assert len(admissions) == 1
    admissions.settle(order(1).request_id, Usage(1, 1, 1), START)
    admissions.tidy(START + 3 + WINDOW_S)
    assert len(admissions) == 0
    assert admitted(admissions, range(4, 9), START + 3 + WINDOW_S) == 2


def test_places_that_are_all_free_are_forgotten_with_the_last_request() -> None:
    admissions = holder(("concurrent_requests", 2))
    assert admitted(admissions, range(2)) == 2
    for number in range(2):
        admissions.settle(order(number).request_id, ASKED, START)
        admissions.charged(order(number).request_id, START)
    admissions.tidy(START + WINDOW_S)
    assert len(admissions) == 0


def refusal(admissions: LocalAdmissions, number: int, now: float) -> float | None:
    with pytest.raises(MeshError) as caught:
        admissions.admit(order(number), now)
    return caught.value.retry_after


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day", "concurrent_requests"])
def test_what_runs_is_expected_to_end_as_recent_requests_did(limit: str) -> None:
    admissions = holder((limit, 50 if limit.startswith("tokens") else 2))
    now = START
    for number, lasted in enumerate((0.2, 7.0, 0.3)):
        admissions.admit(order(number), now)
        now += lasted
        admissions.settle(order(number).request_id, Usage(1, 0, 0), now)
    for number in (3, 4):
        admissions.admit(order(number), now)
    assert refusal(admissions, 5, now) == 0.3
    admissions.settle(order(3).request_id, Usage(1, 0, 0), now)
    admissions.admit(order(5), now)


def test_what_is_used_comes_back_with_its_minute() -> None:
    admissions = holder(("tokens_per_minute", 75))
    for number in range(3):
        admissions.admit(order(number), START + number)
        admissions.settle(order(number).request_id, ASKED, START + number)
    assert refusal(admissions, 3, START + 10) == WINDOW_S - 10
    assert admitted(admissions, range(4, 6), START + WINDOW_S) == 1


def test_what_costs_nothing_is_admitted_above_a_spent_budget() -> None:
    admissions = holder(("daily_budget_nano_usd", 20), per_request=10)
    assert admitted(admissions, range(3)) == 2
    admissions.settle(order(0).request_id, ASKED, START)
    admissions.share = Share(1, {"acme": Allowance(admissions.share.allowances["acme"].limits)})
    assert admitted(admissions, range(3, 9)) == 6


def test_free_of_charge_does_not_mean_free_of_other_limits() -> None:
    admissions = holder(("daily_budget_nano_usd", 0), ("requests_per_minute", 1))
    assert admitted(admissions, range(3)) == 1
