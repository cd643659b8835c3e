"""Every kind of limit, for tenant, key and model: on the specification and on a real server; and the soft ones between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from forebay.errors import Code, MeshError, QuotaViolation
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy, Thresholds
from forebay.quota.counters import CounterStore
from forebay.quota.domain.limits import Kind, Row, Usage, amounts_of, rows_of
from forebay.quota.domain.periods import calendar
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.refusals import out_of_quota
from forebay.quota.domain.reservations import Decision, Hold, Lease, Order, Outcome, Router
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.service import Quota
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1_700_000_000_123_456)
USD = 10**9
# A dollar for a thousand tokens, cached or not; half of it for the tenant's own model.
PRICES = PriceTable(
    [
        *(Price("default", item, 10**12) for item in ("prompt_tokens", "cached_tokens", "completion_tokens")),
        *(Price("tenant:acme", item, 10**12 // 2, model="own") for item in ("prompt_tokens", "completion_tokens")),
    ]
)


class Desk:
    """The service with one tenant and one key, and the clock that store and calendar share."""

    def __init__(self, store: CounterStore, clock: FakeClock, limits: Limits, **fields: Any) -> None:
        key_limits, prices = fields.pop("key_limits", Limits()), fields.pop("prices", None) or Prices(PRICES)
        tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=limits, **fields)
        keys = {key_id: KeyPolicy(key_id, "acme", b"h" * 32, limits=key_limits) for key_id in ("k1", "k2")}
        self.quota = Quota(PolicyFeed(Policies({"acme": tenant}, keys, {}), clock), store, prices, clock.now)
        self.count = 0

    async def ask(self, prompt: int = 10, completion: int = 20, key: str = "k1", model: str = "m") -> str:
        self.count += 1
        request_id = f"{self.count:032x}"
        await self.quota.reserve("acme", Order(request_id, ROUTER, prompt, completion), key, model)
        return request_id

    async def refusal(self, *arguments: Any) -> tuple[str, str, int, int, float | None]:
        with pytest.raises(MeshError) as caught:
            await self.ask(*arguments)
        error = caught.value
        assert error.code is Code.RESOURCE_EXHAUSTED
        (violation,) = error.quota_violations
        return violation.subject, violation.limit, violation.value, violation.used, error.retry_after

    async def used(self) -> Mapping[str, int]:
        return {state.limit: state.used for state in await self.quota.peek("acme", "k1", "m")}


async def test_a_rate_admits_a_second_at_once_and_says_when_the_next_may_come(
    store: CounterStore, clock: FakeClock
) -> None:
    desk = Desk(store, clock, Limits(requests_per_second=3))
    for _ in range(3):
        await desk.ask()
    assert await desk.refusal() == ("tenant:acme", "requests_per_second", 3, 3, 0.334)
    clock.advance(0.333)
    await desk.refusal()
    clock.advance(0.001)
    await desk.ask()
    assert await desk.used() == {"requests_per_second": 3}
    clock.advance(1)
    assert await desk.used() == {"requests_per_second": 0}


async def test_input_and_output_are_limited_apart(store: CounterStore, clock: FakeClock) -> None:
    desk = Desk(store, clock, Limits(input_tokens_per_minute=25, output_tokens_per_minute=50))
    await desk.ask(20, 20)
    assert (await desk.refusal(10, 10))[1:4] == ("input_tokens_per_minute", 25, 20)
    assert (await desk.refusal(1, 40))[1:4] == ("output_tokens_per_minute", 50, 20)
    await desk.ask(5, 30)


async def test_tokens_of_a_day_come_back_at_midnight_of_the_tenant(store: CounterStore, clock: FakeClock) -> None:
    zone = "America/St_Johns"  # three and a half hours behind: its midnight is 03:30 in UTC
    clock.advance(datetime(2026, 11, 22, 3, 0, tzinfo=UTC).timestamp() - clock.now())
    desk = Desk(store, clock, Limits(tokens_per_day=100), time_zone=zone)
    await desk.quota.settle(Lease("acme", await desk.ask(10, 40)), Usage(1, 10, 40))
    request_id = await desk.ask(10, 30)
    # What has been used comes back at midnight, what is held when the request ends.
    assert await desk.refusal(10, 50) == ("tenant:acme", "tokens_per_day", 100, 90, 1_800.0)
    assert await desk.refusal(10, 40) == ("tenant:acme", "tokens_per_day", 100, 90, 0.1)
    clock.advance(1_800)
    await desk.ask(10, 60)
    assert await desk.quota.settle(
        Lease("acme", request_id), Usage(1, 10, 5)
    )  # of yesterday: today has nothing to do with it
    assert await desk.used() == {"tokens_per_day": 70}


async def test_a_budget_holds_the_most_and_keeps_what_it_did_cost(store: CounterStore, clock: FakeClock) -> None:
    limits = Limits(daily_budget_nano_usd=USD // 10, monthly_budget_nano_usd=USD)
    desk = Desk(store, clock, limits)
    request_id = await desk.ask(10, 80)
    subject, limit, value, used, retry_after = await desk.refusal(10, 20)
    assert (subject, limit, value) == ("tenant:acme", "daily_budget_nano_usd", USD // 10)
    assert used == pytest.approx(90 * USD / 1000, rel=1e-6)
    assert retry_after == 1.0  # what runs holds it all
    await desk.quota.settle(Lease("acme", request_id), Usage(1, 10, 5), "m")
    assert not await desk.quota.settle(Lease("acme", request_id), Usage(1, 10, 80), "m")
    assert await desk.used() == {
        "daily_budget_nano_usd": 15 * USD // 1000,
        "monthly_budget_nano_usd": 15 * USD // 1000,
    }
    clock.advance(86_400)
    assert await desk.used() == {"daily_budget_nano_usd": 0, "monthly_budget_nano_usd": 15 * USD // 1000}


@pytest.mark.parametrize(
    ("wait_ms", "said"),
    [(334, "0.4 s"), (61_000, "61 s"), (3_600_000, "60 min"), (154_800_000, "43 h"), (2_678_399_001, "31 d")],
)
def test_a_refusal_says_when_to_try_again_in_words_that_are_read(wait_ms: int, said: str) -> None:
    refusal = out_of_quota([QuotaViolation("tenant:acme", "monthly_budget_nano_usd", 5, 5, 1)], wait_ms)
    assert refusal.message.endswith(f"; try again in {said}")
    assert refusal.retry_after == wait_ms / 1000


@pytest.mark.parametrize("stop_on_budget", [False, True])
async def test_streams_are_stopped_above_a_budget_for_those_who_want_it(
    store: CounterStore, clock: FakeClock, stop_on_budget: bool
) -> None:
    before = Desk(store, clock, Limits(daily_budget_nano_usd=USD))
    request_id = await before.ask(10, 80)
    lease = Lease("acme", request_id)
    lowered = Desk(store, clock, Limits(daily_budget_nano_usd=USD // 100), stop_on_budget=stop_on_budget)
    assert await before.quota.over_budget([lease]) == []
    assert await lowered.quota.over_budget([lease]) == ([request_id] if stop_on_budget else [])


@pytest.mark.parametrize("whose", ["key_limits", "model_limits"])
async def test_streams_are_stopped_above_the_budget_of_a_key_or_on_a_model(
    store: CounterStore, clock: FakeClock, whose: str
) -> None:
    def desk(budget: int) -> Desk:
        limits = Limits(daily_budget_nano_usd=budget)
        return Desk(
            store, clock, Limits(), stop_on_budget=True, **{whose: limits if whose == "key_limits" else {"m": limits}}
        )

    before = desk(USD)
    request_id = await before.ask(10, 80)
    hold = Hold(Order(request_id, ROUTER, 10, 80), "k1", "m", clock.now())
    lease, other = Lease("acme", request_id, hold), Lease("acme", "f" * 32, replace(hold, key_id="k2", model="n"))
    assert await before.quota.over_budget([lease, other]) == []
    assert await desk(USD // 100).quota.over_budget([lease, other]) == [request_id]


@pytest.mark.parametrize("budget", [USD, 0])
async def test_without_prices_no_budget_is_spent(store: CounterStore, clock: FakeClock, budget: int) -> None:
    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(daily_budget_nano_usd=budget))
    quota = Quota(PolicyFeed(Policies({"acme": tenant}, {}, {}), clock), store, Prices(), clock.now)
    with pytest.raises(MeshError) as caught:
        await quota.reserve("acme", Order("a" * 32, ROUTER, 1, 1))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "PRICES_UNKNOWN")


OF_WHOM = ("tenant", "key", "model")


def limits_of(whom: str, limits: Limits) -> dict[str, Any]:
    """Returns a desk's limits, of which these are the tenant's, the key's, or those on the model."""
    if whom == "tenant":
        return {"limits": limits}
    return {"limits": Limits()} | ({"key_limits": limits} if whom == "key" else {"model_limits": {"m": limits}})


@pytest.mark.parametrize("budget", ["daily_budget_nano_usd", "monthly_budget_nano_usd"])
@pytest.mark.parametrize("whom", OF_WHOM)
async def test_what_costs_nothing_is_admitted_above_a_spent_budget(
    store: CounterStore, clock: FakeClock, budget: str, whom: str
) -> None:
    limits = limits_of(whom, Limits(**{budget: USD // 10}))
    desk = Desk(store, clock, **limits)
    await desk.quota.settle(Lease("acme", await desk.ask(10, 80)), Usage(1, 10, 9_000), "m")
    assert (await desk.refusal())[1] == budget
    desk.quota = Desk(store, clock, prices=Prices(PriceTable([])), **limits).quota
    await desk.ask()
    assert (await desk.used())[budget] > USD // 10


async def test_what_costs_nothing_is_neither_slowed_down_nor_stopped_by_a_budget(
    store: CounterStore, clock: FakeClock
) -> None:
    prices = Prices(PriceTable([Price("model:m", "prompt_tokens", 10**12)]))
    desk = Desk(
        store,
        clock,
        Limits(daily_budget_nano_usd=USD // 10),
        prices=prices,
        thresholds=Thresholds(throttle_percent=50),
        stop_on_budget=True,
    )
    await desk.quota.settle(Lease("acme", await desk.ask(80, 0)), Usage(1, 400, 0), "m")
    order = Order("e" * 32, ROUTER, 10, 20)
    assert await desk.quota.reserve("acme", order, "k1", "free") == Decision(Outcome.ADMITTED)
    leases = [Lease("acme", model * 8, Hold(order, "k1", model, clock.now())) for model in ("m", "free")]
    assert await desk.quota.over_budget(leases) == ["m" * 8]


async def test_gpu_time_whose_price_is_known_afterwards_is_not_free(store: CounterStore, clock: FakeClock) -> None:
    prices = Prices(PriceTable([Price("default", "gpu_seconds", 10**12)]))
    desk = Desk(store, clock, Limits(daily_budget_nano_usd=USD), prices=prices)
    await desk.quota.settle(Lease("acme", await desk.ask()), Usage(1, 10, 20, gpu_time_ns=10**13), "m")
    assert (await desk.refusal())[1] == "daily_budget_nano_usd"


async def test_a_budget_of_nothing_admits_what_is_free(store: CounterStore, clock: FakeClock) -> None:
    free = Prices(PriceTable([Price("model:m", "prompt_tokens", 10**12)]))
    desk = Desk(store, clock, Limits(daily_budget_nano_usd=0), prices=free)
    for _ in range(3):
        await desk.ask(model="n")
    assert await desk.used() == {"daily_budget_nano_usd": 0}
    with pytest.raises(MeshError) as caught:
        await desk.ask(model="m")
    assert caught.value.reason == "LARGER_THAN_LIMIT"


async def test_without_prices_no_settlement_makes_a_request_free(store: CounterStore, clock: FakeClock) -> None:
    before = Desk(store, clock, Limits(daily_budget_nano_usd=USD))
    lease, started = Lease("acme", await before.ask(10, 80)), Usage(1, 10, 5)
    never = Lease("acme", await before.ask(10, 20))
    restarted = Desk(store, clock, Limits(daily_budget_nano_usd=USD), prices=Prices())
    with pytest.raises(MeshError) as caught:
        await restarted.quota.settle(lease, started, "m")
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "PRICES_UNKNOWN")
    assert await restarted.quota.settle(never, Usage(0, 0, 0), "m"), "nothing was used, whatever it costs"
    assert await before.quota.settle(lease, started, "m")
    assert await before.used() == {"daily_budget_nano_usd": 15 * USD // 1000}


async def test_keys_and_models_have_limits_within_the_tenants(store: CounterStore, clock: FakeClock) -> None:
    desk = Desk(
        store,
        clock,
        Limits(requests_per_minute=4),
        key_limits=Limits(requests_per_minute=1, concurrent_requests=1),
        model_limits={"m": Limits(tokens_per_minute=60)},
    )
    await desk.ask(10, 20, "k1", "m")
    with pytest.raises(MeshError) as caught:
        await desk.ask(10, 30, "k1", "m")
    assert [(each.subject, each.limit) for each in caught.value.quota_violations] == [
        ("tenant:acme/model:m", "tokens_per_minute"),
        ("key:k1", "requests_per_minute"),
        ("key:k1", "concurrent_requests"),
    ]
    await desk.ask(10, 30, "k2", "other")
    assert (await desk.refusal(10, 30, "", "m"))[:2] == ("tenant:acme/model:m", "tokens_per_minute")


async def test_a_keys_place_is_given_back_and_taken_again_with_the_lease(store: CounterStore, clock: FakeClock) -> None:
    desk = Desk(store, clock, Limits(), key_limits=Limits(concurrent_requests=1))
    first = await desk.ask()
    clock.advance(30)
    await store.sweep("acme", 10)
    second = await desk.ask()
    assert await desk.quota.renew(ROUTER, [Lease("acme", first), Lease("acme", second)]) == [first]
    await desk.quota.settle(Lease("acme", second), Usage(1, 1, 1))
    assert await desk.quota.renew(ROUTER, [Lease("acme", first)]) == []


@pytest.mark.parametrize(
    "limits",
    [
        Limits(output_tokens_per_minute=19),
        Limits(tokens_per_day=29),
        Limits(daily_budget_nano_usd=USD // 100),
    ],
)
async def test_what_can_never_fit_is_an_invalid_argument(store: CounterStore, clock: FakeClock, limits: Limits) -> None:
    with pytest.raises(MeshError) as caught:
        await Desk(store, clock, limits).ask(10, 20)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "LARGER_THAN_LIMIT")


async def test_a_tenant_is_warned_once_then_slowed_down_then_refused(store: CounterStore, clock: FakeClock) -> None:
    thresholds = Thresholds(warn_percent=80, throttle_percent=100, hard_percent=150)
    tenant = TenantPolicy(
        "acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(requests_per_minute=6), thresholds=thresholds
    )

    async def ask(number: int) -> Decision:
        order = Order(f"{number:032x}", ROUTER, 1, 1)
        return await store.reserve("acme", order, rows_of(tenant, Usage(1, 1, 1)))

    decisions = [await ask(number) for number in range(10)]
    assert [decision.warnings for decision in decisions[:6]] == [
        (), (), (), (), ("tenant:acme/requests_per_minute",), (),
    ]  # fmt: skip
    # Beyond six a minute they start ten seconds apart.
    assert [decision.start_after_ms for decision in decisions] == [0, 0, 0, 0, 0, 0, 10_000, 20_000, 30_000, 0]
    assert [decision.outcome for decision in decisions[8:]] == [Outcome.ADMITTED, Outcome.REFUSED]
    assert decisions[9].violations[0].value == 9


def test_pacing_goes_at_the_limits_own_rate() -> None:
    rate = Row("tenant:t", "requests_per_second", Kind.RATE, 8, 1, base=4, throttle_at=4)
    assert [rate.start_after_ms(used) for used in (2, 3, 4, 5)] == [0, 0, 250, 500]
    hold = Row("tenant:t", "concurrent_requests", Kind.HOLD, 8, 1, base=4, throttle_at=4)
    assert hold.start_after_ms(7) == 0
    day = calendar(0, "UTC").day
    daily = Row("tenant:t", "tokens_per_day", Kind.PERIOD, 200, 1, base=100, throttle_at=100, period=day)
    assert daily.start_after_ms(100) == 60_000  # fourteen minutes would be its share; nobody waits for that


def test_days_and_months_are_those_of_the_zone_whatever_their_length() -> None:
    at = datetime(2026, 3, 29, 12, tzinfo=UTC).timestamp()
    berlin = calendar(at, "Europe/Berlin")  # its clocks went forward that night
    assert (berlin.day.name, berlin.month.name) == ("2026-03-29", "2026-03")
    assert berlin.day.ends_at_ms - berlin.day.starts_at_ms == 23 * 3_600_000
    eve = datetime(2026, 12, 31, 23, 30, tzinfo=UTC).timestamp()
    assert calendar(eve, "UTC").month.ends_at_ms == (eve + 1_800) * 1_000
    assert calendar(eve, "Asia/Tokyo").month.name == "2027-01"


def test_prices_go_from_tenant_to_plan_to_model_to_default() -> None:
    def table(*subjects: str) -> PriceTable:
        prices = {"tenant:acme": 5, "plan:basic": 4, "model:m": 3, "default": 2}
        return PriceTable([Price(subject, "completion_tokens", prices[subject] * 10**6) for subject in subjects])

    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, priced_by_plan=True)
    subjects = ["tenant:acme", "plan:basic", "model:m", "default"]
    assert [table(*subjects[at:]).cost(tenant, "m", Usage(1, 0, 1), 0) for at in range(4)] == [5, 4, 3, 2]
    by_model = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500)
    assert table(*subjects[1:]).cost(by_model, "m", Usage(1, 0, 1), 0) == 3
    dated = PriceTable([Price("default", "requests", 10**6), Price("default", "requests", 2 * 10**6, 100.0)])
    assert [dated.cost(tenant, "m", Usage(1, 0, 0), now) for now in (99, 100)] == [1, 2]


def test_a_cost_is_rounded_as_the_ledger_does_and_its_hold_up() -> None:
    table = PriceTable(
        [
            Price("default", "prompt_tokens", 300_000),
            Price("default", "cached_tokens", 100_000),
            Price("default", "gpu_seconds", 10**6),
        ]
    )
    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500)
    assert table.cost(tenant, "m", Usage(1, 25, 0, cached_tokens=5, gpu_time_ns=2_500_000_000), 0) == 6 + 1 + 3
    assert table.most(tenant, "m", Usage(1, 25, 0), 0) >= table.cost(tenant, "m", Usage(1, 25, 0, 15), 0)


def test_settled_amounts_are_those_that_go_on_counting() -> None:
    assert amounts_of(Usage(1, 10, 20, cost_nano_usd=7)) == {
        "requests_per_minute": 1,
        "tokens_per_minute": 30,
        "input_tokens_per_minute": 10,
        "output_tokens_per_minute": 20,
        "tokens_per_day": 30,
        "daily_budget_nano_usd": 7,
        "monthly_budget_nano_usd": 7,
    }
