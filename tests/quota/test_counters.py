"""Properties of the specification over random histories; with test_counters_equal they hold for the scripts too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.limits import Kind, Usage, amounts_of, rows_of
from forebay.quota.domain.rates import Rate, whole
from forebay.quota.domain.reservations import Observation, Order, Outcome, Router, Terms
from forebay.quota.domain.windows import Window

ROUTER = Router("router-1", 1)
TERMS = Terms(lease_ms=10_000, provisional_ms=20_000, remembered_ms=600_000)
LIMITS = Limits(
    requests_per_minute=6,
    tokens_per_minute=50,
    input_tokens_per_minute=35,
    output_tokens_per_minute=30,
    concurrent_requests=3,
)
NOTHING = Usage(0, 0, 0)
TENANT = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=LIMITS)

pauses = st.integers(0, 2_000) | st.integers(0, 40_000) | st.sampled_from([999, 1_000, 59_000, 59_999, 60_000, 60_001])
tokens = st.integers(0, 25)
acts = st.sampled_from(["reserve", "reserve", "reserve", "settle", "sweep", "sweep", "renew", "observe"])
histories = st.lists(st.tuples(pauses, acts, tokens, tokens), max_size=60)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(histories)
def test_no_minute_and_no_moment_exceeds_a_limit(history: list[tuple[int, str, int, int]]) -> None:
    counters = TenantCounters(TERMS)
    now = 1_700_000_000_000
    counters.begin(now, lost=False)
    charged: dict[str, tuple[int, Usage]] = {}  # request id: when it was admitted, and what it is charged with
    observed: dict[str, Usage] = {}
    for number, (pause, act, prompt, completion) in enumerate(history):
        now += pause
        live = [held.order for held in counters.reservations(now, "", 100)]
        chosen = live[number % len(live)] if live else None
        if act == "reserve":
            order, most = Order(f"{number:032x}", ROUTER, prompt, completion), Usage(1, prompt, completion)
            if counters.reserve(now, order, rows_of(TENANT, most)).outcome is Outcome.ADMITTED:
                charged[order.request_id] = (now, most)
        elif act == "settle" and chosen:
            used = Usage(1, chosen.prompt_tokens, completion % (chosen.max_completion_tokens + 1))
            assert counters.settle(now, chosen.request_id, amounts_of(used))
            charged[chosen.request_id] = (charged[chosen.request_id][0], used)
        elif act == "sweep":
            counters.sweep(now, 100)
            left = {held.order.request_id for held in counters.reservations(now, "", 100)}
            for request_id in {order.request_id for order in live} - left:
                charged[request_id] = (charged[request_id][0], observed.get(request_id, NOTHING))
        elif act == "observe" and chosen:
            used = Usage(1, chosen.prompt_tokens, completion % (chosen.max_completion_tokens + 1))
            final = prompt % 2 == 0
            counters.observe(now, [Observation(chosen.request_id, number, amounts_of(used), final)])
            observed[chosen.request_id] = used
        elif act == "renew" and chosen:
            counters.renew(now, ROUTER, [chosen.request_id], rows_of(TENANT, NOTHING))

        last_minute = in_windows(used for at, used in charged.values() if at > now - 60_000)
        assert all(taken <= getattr(LIMITS, limit) for limit, taken in last_minute.items())
        shown = {state.limit: state.used for state in counters.peek(now, rows_of(TENANT, NOTHING))}
        assert min(shown.values()) >= 0
        assert shown.pop("concurrent_requests") <= 3
        assert shown == in_windows(used for at, used in charged.values() if at // 1_000 >= now // 1_000 - 60)


def in_windows(usages: Iterable[Usage]) -> dict[str, int]:
    """Returns what requests take together of each limit a minute."""
    total = dict.fromkeys((row.limit for row in rows_of(TENANT, NOTHING) if row.kind is Kind.WINDOW), 0)
    for used in usages:
        total["requests_per_minute"] += used.requests
        total["input_tokens_per_minute"] += used.prompt_tokens
        total["output_tokens_per_minute"] += used.completion_tokens
        total["tokens_per_minute"] += used.prompt_tokens + used.completion_tokens
    return total


@settings(max_examples=30, deadline=None)
@given(histories)
def test_the_advised_wait_is_the_shortest_that_helps(history: list[tuple[int, str, int, int]]) -> None:
    def replay() -> tuple[TenantCounters, int]:
        counters, now = TenantCounters(TERMS), 1_700_000_000_000
        counters.begin(now, lost=False)
        for number, (pause, _, prompt, completion) in enumerate(history):
            now += pause
            order = Order(f"{number:032x}", ROUTER, prompt, completion)
            counters.reserve(now, order, rows_of(TENANT, Usage(1, prompt, completion)))
            counters.settle(now, order.request_id, amounts_of(Usage(1, prompt, completion)))
        return counters, now

    def last(counters: TenantCounters, now: int) -> Callable[[int], Outcome]:
        order = Order("f" * 32, ROUTER, 20, 20)
        return lambda wait: counters.reserve(now + wait, order, rows_of(TENANT, Usage(1, 20, 20))).outcome

    counters, now = replay()
    order = Order("f" * 32, ROUTER, 20, 20)
    decision = counters.reserve(now, order, rows_of(TENANT, Usage(1, 20, 20)))
    if decision.outcome is Outcome.REFUSED:
        assert last(*replay())(decision.retry_after_ms - 1) is Outcome.REFUSED
        assert last(*replay())(decision.retry_after_ms) is Outcome.ADMITTED


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=50))
def test_a_window_sums_the_last_61_seconds(taken: list[tuple[int, int]]) -> None:
    window, second, all_taken = Window(), 1_700_000_000, []
    for pause, amount in taken:
        second += pause
        window.take(second, amount)
        all_taken.append((second, amount))
        assert window.used(second) == sum(amount for at, amount in all_taken if at >= second - 60)
        assert window.used(second + 61) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.lists(st.integers(0, 700), max_size=60))
def test_a_rate_admits_a_second_at_once_and_then_as_many_as_have_drained(per_second: int, pauses: list[int]) -> None:
    rate, now, admitted = Rate(), 1_700_000_000_000, []
    for pause in pauses:
        now += pause
        while whole(rate.level(now, per_second) + 1_000) <= per_second:
            rate.take(now, per_second, 1)
            admitted.append(now)
    for since in admitted:
        later = [at for at in admitted if at >= since]
        assert all(1_000 * (number + 1) <= per_second * (at - since + 1_000) for number, at in enumerate(later))


def test_a_refusal_counts_a_limit_that_does_not_exist_as_endless() -> None:
    rows = rows_of(TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500), Usage(1, 10**9, 10**9))
    assert [row.limit for row in rows] == [
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "tokens_per_day",
        "daily_budget_nano_usd",
        "monthly_budget_nano_usd",
    ]
    assert all(row.value is None and row.has_room(10**12) for row in rows)
