"""What a limit admits while the counters' clock steps: properties of the specification, and so of the scripts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.periods import calendar
from forebay.quota.domain.reservations import Order, Outcome, Router, Terms
from forebay.quota.domain.safety import SPAN, Ask, Grants
from forebay.quota.domain.timeline import Timeline

ROUTER = Router("router-1", 1)
START_MS = 1_700_000_000_000
PER_SECOND, PER_MINUTE, TOKENS_PER_MINUTE, TOKENS_PER_DAY = 3, 7, 60, 400
LIMITS = Limits(
    requests_per_second=PER_SECOND,
    requests_per_minute=PER_MINUTE,
    tokens_per_minute=TOKENS_PER_MINUTE,
    concurrent_requests=5,
    tokens_per_day=TOKENS_PER_DAY,
)
TENANT = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=LIMITS)
# What the clock is set by at an instant, if it is set at all: milliseconds to years, either way.
SIZES_MS = (20, 1_000, 61_000, 600_000, 86_400_000, 400 * 86_400_000)
steps = st.just(0) | st.sampled_from([sign * size for size in SIZES_MS for sign in (1, -1)])
pauses = st.integers(0, 300) | st.integers(0, 20_000)
histories = st.lists(st.tuples(pauses, steps, st.integers(1, 20), st.booleans()), max_size=60)


@dataclass(frozen=True)
class Admitted:
    """A request that passed: when, in true ms, and what it took."""

    at_ms: int
    tokens: int


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10_000), steps), max_size=40))
def test_a_timeline_goes_as_far_as_its_clock_goes_forward(history: list[tuple[int, int]]) -> None:
    timeline, clock, true, before, forward = Timeline(), START_MS, START_MS, START_MS, 0
    timeline.advance(clock)
    for pause, step in history:
        reading = clock + pause + step
        forward += max(0, reading - clock)
        true, clock = true + pause, reading
        now = timeline.advance(clock)
        assert now == timeline.at(clock) == START_MS + forward
        assert now >= before
        before = now


@settings(max_examples=70)
@given(histories)
def test_a_step_forward_admits_a_limit_once_more_and_a_step_back_nothing(
    history: list[tuple[int, int, int, bool]],
) -> None:
    counters = TenantCounters(Terms())
    true = clock = START_MS
    counters.begin(clock, lost=False)
    admitted: list[Admitted] = []
    forward: list[int] = []
    days: dict[str, int] = {}
    for number, (pause, step, tokens, settled) in enumerate(history):
        true, clock = true + pause, clock + pause + step
        if step > 0:
            forward.append(true)
        order, now_s = Order(f"{number:032x}", ROUTER, tokens, 0), clock / 1000
        rows = rows_of(TENANT, Usage(1, tokens, 0), now_s)
        if counters.reserve(clock, order, rows).outcome is Outcome.ADMITTED:
            admitted.append(Admitted(true, tokens))
            day = calendar(now_s, "UTC").day.name
            days[day] = days.get(day, 0) + tokens
        if settled:
            counters.settle(clock, order.request_id, amounts_of(Usage(1, tokens, 0)))
        for span_ms, requests, most_tokens in ((60_000, PER_MINUTE, TOKENS_PER_MINUTE), (1_000, 2 * PER_SECOND, None)):
            recent = [each for each in admitted if each.at_ms > true - span_ms]
            times = 1 + sum(at > true - span_ms for at in forward)
            assert len(recent) <= times * requests
            if most_tokens is not None:
                assert sum(each.tokens for each in recent) <= times * most_tokens
        # Each day that was named has its limit, in whichever order; the four named last are remembered.
        if len(days) <= 4:
            assert all(taken <= TOKENS_PER_DAY for taken in days.values())


@settings(max_examples=70)
@given(histories)
def test_after_any_step_a_full_minute_is_free_again_a_minute_later(history: list[tuple[int, int, int, bool]]) -> None:
    counters, clock = TenantCounters(Terms()), START_MS
    counters.begin(clock, lost=False)
    for number, (pause, step, tokens, _) in enumerate(history):
        clock += pause + step
        order = Order(f"{number:032x}", ROUTER, tokens, 0)
        counters.reserve(clock, order, rows_of(TENANT, Usage(1, tokens, 0)))
        counters.settle(clock, order.request_id, amounts_of(Usage(1, tokens, 0)))
    counters.peek(clock, rows_of(TENANT, Usage(0, 0, 0)))
    shown = {state.limit: state.used for state in counters.peek(clock + 61_000, rows_of(TENANT, Usage(0, 0, 0)))}
    assert {shown[limit] for limit in ("requests_per_second", "requests_per_minute", "tokens_per_minute")} == {0}


def test_a_day_that_a_clock_only_seemed_to_reach_leaves_today_as_it_was() -> None:
    counters, day_ms = TenantCounters(Terms()), 86_400_000
    counters.begin(START_MS, lost=False)

    def ask(clock_ms: int, number: int, tokens: int) -> Outcome:
        order = Order(f"{number:032x}", ROUTER, tokens, 0)
        rows = rows_of(
            TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(tokens_per_day=TOKENS_PER_DAY)),
            Usage(1, tokens, 0),
            clock_ms / 1000,
        )
        return counters.reserve(clock_ms, order, rows).outcome

    assert ask(START_MS, 1, TOKENS_PER_DAY) is Outcome.ADMITTED
    assert ask(START_MS + day_ms, 2, TOKENS_PER_DAY - 1) is Outcome.ADMITTED
    assert ask(START_MS, 3, 1) is Outcome.REFUSED
    assert ask(START_MS + 400 * day_ms, 4, 1) is Outcome.ADMITTED
    assert ask(START_MS, 5, 1) is Outcome.REFUSED
    # Tomorrow comes, and has what was taken of it before its time.
    assert [ask(START_MS + day_ms, number, 1) for number in (6, 7)] == [Outcome.ADMITTED, Outcome.REFUSED]


@settings(max_examples=70)
@given(st.lists(st.tuples(st.integers(0, 400), steps, st.integers(1, 9)), max_size=60))
def test_the_limit_above_all_tenants_is_granted_once_more_after_a_step_forward(
    history: list[tuple[int, int, int]],
) -> None:
    limit, grants, true, clock = 10, Grants(), START_MS, START_MS
    granted: list[tuple[int, int]] = []
    forward: list[int] = []
    for pause, step, asked in history:
        true, clock = true + pause, clock + pause + step
        if step > 0:
            forward.append(true)
        chunk = grants.grant(clock, limit, Ask(asked))
        granted.append((true, chunk.permits))
        recent = sum(permits for at, permits in granted if at > true - 1_100)
        assert recent <= limit * (1 + sum(at > true - 1_100 for at in forward))
        assert 0 < chunk.wait_ms <= (SPAN + 1) * 10
    assert grants.grant(clock + 1_110, limit, Ask(limit)).permits == limit
