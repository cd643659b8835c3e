"""Prices, lines and their one rounding."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from forebay.metering.domain.charge import PriceLine, Usage, billed, changes, charge, net
from forebay.metering.domain.event import NANO, Source, UsageEvent
from forebay.metering.domain.prices import Item, Price, PriceTable, problems

from .samples import NOON_NS, TABLE, usage_event

quantities = st.integers(-(10**15), 10**15)
lines = st.builds(PriceLine, st.sampled_from(Item), quantities, st.integers(0, 10**15), st.just("default"))
events = st.builds(
    lambda attempt, prompt, cached, start, length, gpu, recomputed: usage_event(
        attempt=attempt,
        prompt_tokens=prompt + cached,
        cached_tokens=cached,
        completion_from=start,
        completion_to=start + length,
        gpu_time_ns=gpu + recomputed,
        recomputed_gpu_time_ns=recomputed,
    ),
    st.integers(1, 3),
    *[st.integers(0, 10**6)] * 4,
    *[st.integers(0, 10**12)] * 2,
)


@given(lines)
def test_a_line_is_rounded_once_half_up(line: PriceLine) -> None:
    per = 10**6 * (NANO if line.item is Item.GPU_SECONDS else 1)
    exact = Fraction(line.quantity * line.nano_usd_per_million, per)
    error = abs(line.amount_nano_usd) - abs(exact)
    assert Fraction(-1, 2) < error <= Fraction(1, 2)
    taken_back = PriceLine(line.item, -line.quantity, line.nano_usd_per_million, line.source)
    assert taken_back.amount_nano_usd == -line.amount_nano_usd


def test_half_a_nano_dollar_is_rounded_up() -> None:
    assert PriceLine(Item.PROMPT_TOKENS, 1, 500_000, "default").amount_nano_usd == 1
    assert PriceLine(Item.PROMPT_TOKENS, 1, 499_999, "default").amount_nano_usd == 0
    assert PriceLine(Item.PROMPT_TOKENS, -1, 500_000, "default").amount_nano_usd == -1


@given(events, events)
def test_the_lines_hold_all_that_is_billed(event: UsageEvent, other: UsageEvent) -> None:
    usage = billed({other.attempt: other, event.attempt: event})[event.attempt]
    by_item = {line.item: line.quantity for line in charge(event, usage, TABLE)}
    assert by_item.get(Item.PROMPT_TOKENS, 0) + by_item.get(Item.CACHED_TOKENS, 0) == usage.prompt_tokens
    assert by_item.get(Item.CACHED_TOKENS, 0) == usage.cached_tokens
    assert by_item.get(Item.COMPLETION_TOKENS, 0) == usage.completion_tokens
    assert by_item.get(Item.GPU_SECONDS, 0) == usage.gpu_time_ns
    assert by_item.get(Item.REQUESTS, 0) == usage.requests


@given(st.lists(lines, max_size=6), st.lists(lines, max_size=6))
def test_changes_lead_from_old_lines_to_new_ones(old: list[PriceLine], new: list[PriceLine]) -> None:
    before, after = net(old), net(new)
    assert sorted(net((*before, *changes(before, after))), key=repr) == sorted(after, key=repr)
    difference = sum(line.amount_nano_usd for line in changes(before, after))
    assert difference == sum(line.amount_nano_usd for line in after) - sum(line.amount_nano_usd for line in before)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(Source)), min_size=1, max_size=5))
def test_every_position_is_billed_at_most_once(spans: list[tuple[int, int, Source]]) -> None:
    attempts = {
        number: usage_event(attempt=number, source=source, completion_from=start, completion_to=start + length)
        for number, (start, length, source) in enumerate(spans, start=1)
    }
    positions: list[int] = []
    for number, usage in billed(attempts).items():
        start = attempts[number].completion_from
        positions += range(start, start + usage.completion_tokens)
    assert len(positions) == len(set(positions))


def test_the_first_attempt_there_is_bills_the_prompt_and_the_request() -> None:
    attempts = {
        3: usage_event(attempt=3, completion_from=20, completion_to=50),
        2: usage_event(attempt=2, completion_to=30, recomputed_gpu_time_ns=10_000_000),
    }
    assert billed(attempts) == {2: Usage(1, 1, 100, 40, 20, 40_000_000), 3: Usage(1, 0, 0, 0, 30, 50_000_000)}


def test_a_checkpoint_behind_the_client_bills_up_to_where_the_next_attempt_went_on() -> None:
    lost = usage_event(attempt=1, source=Source.WORKER_RECOVERY, completion_to=10)
    going_on = usage_event(attempt=2, completion_from=15, completion_to=40)
    assert [usage.completion_tokens for usage in billed({1: lost}).values()] == [10]
    assert {n: usage.completion_tokens for n, usage in billed({1: lost, 2: going_on}).items()} == {1: 15, 2: 25}


def table(*prices: Price) -> PriceTable:
    return PriceTable([*TABLE.prices, *prices])


def test_the_most_specific_subject_wins_item_by_item() -> None:
    prices = table(
        Price("model:smollm2", Item.COMPLETION_TOKENS, 1),
        Price("plan:basic", Item.COMPLETION_TOKENS, 2),
        Price("tenant:acme", Item.COMPLETION_TOKENS, 3),
        Price("model:smollm2", Item.PROMPT_TOKENS, 4),
        Price("plan:basic", Item.PROMPT_TOKENS, 5),
    )
    by_plan, by_model, stranger = (
        usage_event(priced_by_plan=True),
        usage_event(priced_by_plan=False),
        usage_event(tenant_id="globex", model="other"),
    )
    assert prices.price(by_plan, Item.COMPLETION_TOKENS).subject == "tenant:acme"
    assert prices.price(by_plan, Item.PROMPT_TOKENS).subject == "plan:basic"
    assert prices.price(by_model, Item.PROMPT_TOKENS).subject == "model:smollm2"
    assert prices.price(stranger, Item.PROMPT_TOKENS).subject == "default"


def test_a_price_for_the_model_goes_before_one_for_all() -> None:
    prices = table(Price("tenant:acme", Item.REQUESTS, 1), Price("tenant:acme", Item.REQUESTS, 2, model="smollm2"))
    assert prices.price(usage_event(), Item.REQUESTS).nano_usd_per_million == 2
    assert prices.price(usage_event(model="other"), Item.REQUESTS).nano_usd_per_million == 1


def test_the_price_in_force_when_the_attempt_ended_applies() -> None:
    prices = table(
        Price("model:smollm2", Item.REQUESTS, 5, effective_from_ns=NOON_NS),
        Price("model:smollm2", Item.REQUESTS, 7, effective_from_ns=NOON_NS + NANO),
    )

    def at(time_ns: int) -> tuple[str, int]:
        price = prices.price(usage_event(finished_at_ns=time_ns), Item.REQUESTS)
        return price.subject, price.nano_usd_per_million

    assert at(NOON_NS - 1) == ("default", 999_999)
    assert at(NOON_NS) == ("model:smollm2", 5)
    assert at(NOON_NS + NANO) == ("model:smollm2", 7)


def test_a_table_with_problems_names_each() -> None:
    wrong = [
        Price("default", Item.PROMPT_TOKENS, 1),
        Price("default", Item.PROMPT_TOKENS, 2),
        Price("region:eu", Item.PROMPT_TOKENS, 1),
        Price("model:a", Item.PROMPT_TOKENS, -1),
        Price("model:b", Item.PROMPT_TOKENS, 1, model="c"),
    ]
    found = "\n".join(f"{which}: {problem}" for which, problem in problems(wrong))
    assert found.count("default has no price for") == 4
    for part in ("there is another price", "region:eu", "must be from 0 to", "only a tenant's or a plan's"):
        assert part in found
    assert not list(problems(list(TABLE.prices)))
