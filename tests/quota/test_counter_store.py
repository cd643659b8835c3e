"""What every store of counters does; runs on the specification and on a real server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from forebay.errors import QuotaViolation
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Decision, Observation, Order, Outcome, Router, State, Swept
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1_700_000_000_123_456)
Reserve = Callable[..., Awaitable[Decision]]


async def used(store: CounterStore, tenant: TenantPolicy) -> dict[str, int]:
    return {state.limit: state.used for state in await store.peek(tenant.tenant_id, rows_of(tenant, Usage(0, 0, 0)))}


async def settle(store: CounterStore, name: str, usage: Usage) -> bool:
    return await store.settle("acme", name * 32, amounts_of(usage))


async def test_a_reservation_takes_of_every_limit(store: CounterStore, tenant: TenantPolicy, reserve: Reserve) -> None:
    assert await reserve("a", 10, 20) == Decision(Outcome.ADMITTED)
    assert await used(store, tenant) == {
        "requests_per_minute": 1,
        "tokens_per_minute": 30,
        "concurrent_requests": 1,
    }


async def test_a_settlement_replaces_the_worst_case_once(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve
) -> None:
    await reserve("a", 10, 80)
    assert await settle(store, "a", Usage(1, 10, 7))
    after = {"requests_per_minute": 1, "tokens_per_minute": 17, "concurrent_requests": 0}
    assert await used(store, tenant) == after
    assert not await settle(store, "a", Usage(1, 10, 50))
    assert await used(store, tenant) == after
    assert not await settle(store, "b", Usage(1, 1, 1))


async def test_a_settlement_after_its_minute_changes_nothing_of_the_present_one(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 80)
    clock.advance(61)
    await reserve("b", 10, 80)
    assert await settle(store, "a", Usage(1, 10, 0))
    assert await used(store, tenant) == {
        "requests_per_minute": 1,
        "tokens_per_minute": 90,
        "concurrent_requests": 1,
    }
    assert (await reserve("c", 1, 10)).outcome is Outcome.REFUSED


async def test_a_request_that_never_started_gives_everything_back(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve
) -> None:
    await reserve("a", 10, 80)
    assert await settle(store, "a", Usage(0, 0, 0))
    assert set((await used(store, tenant)).values()) == {0}


async def test_a_refusal_names_every_limit_without_room_and_takes_nothing(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    clock.advance(10.25)
    await reserve("b", 10, 20)
    before = await used(store, tenant)
    decision = await reserve("c", 10, 5)
    assert decision == Decision(
        Outcome.REFUSED,
        (
            QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 15),
            QuotaViolation("tenant:acme", "concurrent_requests", 2, 2, 1),
        ),
        1_000,  # what runs holds it all, and nothing has ended yet
    )
    assert await used(store, tenant) == before


async def test_the_advised_wait_is_exact(store: CounterStore, reserve: Reserve, clock: FakeClock) -> None:
    await reserve("a", 10, 30)
    await settle(store, "a", Usage(1, 10, 30))
    clock.advance(20.5)
    await reserve("b", 10, 50)
    await settle(store, "b", Usage(1, 10, 50))
    clock.advance(3)
    wait = (await reserve("c", 10, 30)).retry_after_ms
    clock.advance((wait - 1) / 1000)
    assert (await reserve("c", 10, 30)).outcome is Outcome.REFUSED
    clock.advance(0.001)
    assert (await reserve("c", 10, 30)).outcome is Outcome.ADMITTED


async def test_a_minute_holds_no_more_than_the_limit_across_its_boundary(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    clock.advance(59.9)
    for name in "abcde":
        assert (await reserve(name)).outcome is Outcome.ADMITTED
        await settle(store, name, Usage(1, 1, 1))
    clock.advance(60.0)
    assert (await reserve("f")).outcome is Outcome.REFUSED
    clock.advance(1.0)
    assert (await reserve("f")).outcome is Outcome.ADMITTED
    assert (await used(store, tenant))["requests_per_minute"] == 1


async def test_many_at_once_never_overshoot(store: CounterStore) -> None:
    tenant = TenantPolicy("many", "basic", ServiceClass.BRONZE, 500, limits=Limits(concurrent_requests=10))
    rows = rows_of(tenant, Usage(1, 1, 1))
    decisions = await asyncio.gather(
        *(store.reserve("many", Order(f"{number:032x}", ROUTER, 1, 1), rows) for number in range(50))
    )
    assert [decision.outcome for decision in decisions].count(Outcome.ADMITTED) == 10
    assert (await used(store, tenant)) == {"concurrent_requests": 10}


async def test_a_repeat_is_answered_as_before_for_the_same_life_of_the_router_only(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve
) -> None:
    await reserve("a", 10, 80)
    before = await used(store, tenant)
    later_life = Router(ROUTER.id, ROUTER.incarnation + 1)
    for _ in range(2):  # while it is held, and after it was settled
        assert await reserve("a", 10, 80) == Decision(Outcome.ADMITTED)
        assert await reserve("a", 10, 80, later_life) == Decision(Outcome.TAKEN)
        assert await used(store, tenant) == before
        await settle(store, "a", Usage(1, 10, 80))
        before = await used(store, tenant)


async def test_a_renewed_lease_outlives_the_sweep(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a")
    await reserve("b")
    clock.advance(20)
    rows = rows_of(tenant, Usage(0, 0, 0))
    assert await store.renew("acme", ROUTER, ["a" * 32], rows) == []
    clock.advance(10)
    assert await store.sweep("acme", 100) == Swept(expired=1)
    states = {item.order.request_id[0]: item.state for item in await store.reservations("acme", "", 10)}
    assert states == {"a": State.HELD, "b": State.EXPIRED}


async def test_an_expired_lease_gives_back_its_place_and_stays_charged(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    clock.advance(30)
    await store.sweep("acme", 100)
    assert await used(store, tenant) == {
        "requests_per_minute": 1,
        "tokens_per_minute": 60,
        "concurrent_requests": 0,
    }
    assert await settle(store, "a", Usage(1, 10, 5))  # late, and still the one that counts
    assert (await used(store, tenant))["tokens_per_minute"] == 15
    assert (await used(store, tenant))["concurrent_requests"] == 0


async def test_an_expired_lease_is_revived_only_where_there_is_room(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a")
    await reserve("b")
    clock.advance(30)
    await store.sweep("acme", 100)
    await reserve("c")
    rows = rows_of(tenant, Usage(0, 0, 0))
    assert await store.renew("acme", ROUTER, ["a" * 32, "b" * 32, "c" * 32], rows) == ["b" * 32]
    assert (await used(store, tenant))["concurrent_requests"] == 2


async def test_what_is_not_the_routers_own_cannot_be_renewed(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve
) -> None:
    await reserve("a")
    ids = ["a" * 32, "b" * 32]
    assert await store.renew("acme", Router("router-1", 7), ids, rows_of(tenant, Usage(0, 0, 0))) == ids


async def test_an_expired_reservation_that_never_started_is_charged_nothing_and_then_forgotten(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a")
    clock.advance(30)
    assert await store.sweep("acme", 100) == Swept(expired=1)
    clock.advance(3600)
    assert await store.sweep("acme", 100) == Swept(settled=1)
    assert await store.reservations("acme", "", 10) == []
    assert set((await used(store, tenant)).values()) == {0}
    assert not await settle(store, "a", Usage(1, 1, 1))
    clock.advance(600)
    assert await store.sweep("acme", 100) == Swept(forgotten=1)
    assert await store.sweep("acme", 100) == Swept()


def observation(name: str, position: int, completion: int, *, final: bool) -> Observation:
    return Observation(name * 32, position, amounts_of(Usage(1, 10, completion)), final)


async def tokens(store: CounterStore, tenant: TenantPolicy) -> int:
    return (await used(store, tenant))["tokens_per_minute"]


async def test_what_is_observed_counts_only_once_the_lease_has_lapsed(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    assert await store.observe("acme", [observation("a", 1, 5, final=True)]) == 1
    assert await tokens(store, tenant) == 60
    clock.advance(20)
    assert await store.renew("acme", ROUTER, ["a" * 32], rows_of(tenant, Usage(0, 0, 0))) == []
    clock.advance(29)
    assert await store.sweep("acme", 100) == Swept()
    clock.advance(1)
    assert await store.sweep("acme", 100) == Swept(expired=1)
    assert await tokens(store, tenant) == 60
    assert await store.sweep("acme", 100) == Swept(settled=1)
    assert await used(store, tenant) == {
        "requests_per_minute": 1,
        "tokens_per_minute": 15,
        "concurrent_requests": 0,
    }
    assert not await settle(store, "a", Usage(1, 10, 6))
    assert await tokens(store, tenant) == 15


async def test_usage_that_comes_after_the_lease_settles_at_once(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    clock.advance(30)
    await store.sweep("acme", 100)
    assert await store.sweep("acme", 100) == Swept()
    await store.observe("acme", [observation("a", 1, 5, final=True)])
    assert await store.sweep("acme", 100) == Swept(settled=1)
    assert await tokens(store, tenant) == 15


async def test_another_attempt_may_follow_for_one_lease(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    await reserve("b", 10, 20)
    clock.advance(30)
    await store.sweep("acme", 100)
    lost = [observation(name, 1, 5, final=False) for name in "ab"]
    await store.observe("acme", lost)
    clock.advance(20)
    assert await store.sweep("acme", 100) == Swept()
    await store.observe("acme", [*lost, observation("a", 2, 9, final=False)])  # the first of them are no news
    clock.advance(9)
    assert await store.sweep("acme", 100) == Swept()
    clock.advance(1)
    assert await store.sweep("acme", 100) == Swept(settled=1)  # b
    (left,) = await store.reservations("acme", "", 10)
    assert left.order.request_id == "a" * 32
    clock.advance(20)
    assert await store.sweep("acme", 100) == Swept(settled=1)


async def test_the_last_row_of_the_last_attempt_counts_in_whichever_order_they_come(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    known = [
        observation("a", 1, 20, final=False),
        observation("a", 2, 30, final=True),
        observation("a", 4, 31, final=True),  # a correction
    ]
    assert await store.observe("acme", [known[1], known[0]]) == 1
    assert await store.observe("acme", [known[2], *known]) == 1
    assert await store.observe("acme", [observation("b", 5, 1, final=True)]) == 0
    clock.advance(30)
    await store.sweep("acme", 100)
    await store.sweep("acme", 100)
    assert await tokens(store, tenant) == 41


async def test_a_late_settlement_goes_before_what_was_observed(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    clock.advance(30)
    await store.sweep("acme", 100)
    await store.observe("acme", [observation("a", 1, 5, final=True)])
    assert await settle(store, "a", Usage(1, 10, 6))
    assert await store.sweep("acme", 100) == Swept()
    assert await tokens(store, tenant) == 16


async def test_a_revived_lease_is_its_routers_again_whatever_was_observed(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("a", 10, 50)
    clock.advance(30)
    await store.sweep("acme", 100)
    await store.observe("acme", [observation("a", 1, 5, final=True)])
    assert await store.renew("acme", ROUTER, ["a" * 32], rows_of(tenant, Usage(0, 0, 0))) == []
    assert await store.sweep("acme", 100) == Swept()
    assert await settle(store, "a", Usage(1, 10, 6))
    assert await tokens(store, tenant) == 16
    assert (await used(store, tenant))["concurrent_requests"] == 0


async def test_a_store_that_has_forgotten_stays_above_zero(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve
) -> None:
    # What a crash of the server may take with it is the last second as a whole: counters and reservation together.
    await reserve("a", 10, 50)
    await settle(store, "a", Usage(1, 10, 5))
    before = await used(store, tenant)
    assert not await settle(store, "f", Usage(1, 10, 5))
    assert await store.renew("acme", ROUTER, ["f" * 32], rows_of(tenant, Usage(0, 0, 0))) == ["f" * 32]
    assert await used(store, tenant) == before


async def test_tenants_with_something_for_the_sweep_are_known(store: CounterStore, reserve: Reserve) -> None:
    assert list(await store.tenants()) == []
    await reserve("a")
    assert list(await store.tenants()) == ["acme"]


async def test_the_cursor_is_kept(store: CounterStore) -> None:
    assert await store.usage_cursor() == ""
    await store.keep_usage_cursor("v1:7")
    assert await store.usage_cursor() == "v1:7"


async def test_a_sweep_is_bounded_and_takes_the_oldest_first(
    store: CounterStore, reserve: Reserve, clock: FakeClock
) -> None:
    await reserve("b")
    clock.advance(1)
    await reserve("a")
    clock.advance(60)
    assert await store.sweep("acme", 1) == Swept(expired=1)
    states = {item.order.request_id[0]: item.state for item in await store.reservations("acme", "", 10)}
    assert states == {"a": State.HELD, "b": State.EXPIRED}


@pytest.mark.parametrize("seconds", [0.05, 30, 600, 86_400, 400 * 86_400])
async def test_a_clock_that_goes_back_frees_nothing_early_and_nothing_late(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock, seconds: float
) -> None:
    await reserve("a", 10, 80)
    await settle(store, "a", Usage(1, 10, 80))
    await reserve("c", 1, 1)
    clock.advance(-seconds)
    (reservation,) = await store.reservations("acme", "", 10)
    assert reservation.reserved_at_ms == int(clock.now() * 1000)
    decision = await reserve("b", 10, 5)
    assert (decision.outcome, decision.retry_after_ms) == (Outcome.REFUSED, 61_000)
    clock.advance(60.999)
    assert (await reserve("b", 10, 5)).outcome is Outcome.REFUSED
    clock.advance(0.001)
    assert (await reserve("b", 10, 5)).outcome is Outcome.ADMITTED


async def test_a_clock_that_is_ahead_for_a_while_admits_a_limit_once_more_and_then_none(
    store: CounterStore, clock: FakeClock
) -> None:
    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(requests_per_minute=3))
    numbers = itertools.count()

    async def admitted() -> int:
        decisions = []
        for _ in range(5):
            order = Order(f"{next(numbers):032x}", ROUTER, 1, 1)
            decisions.append(await store.reserve("acme", order, rows_of(tenant, Usage(1, 1, 1))))
        return [decision.outcome for decision in decisions].count(Outcome.ADMITTED)

    assert await admitted() == 3
    clock.advance(600)
    assert await admitted() == 3
    for step in (2 - 600, 600, -600, 30):  # forward and back once more, and half a minute
        clock.advance(step)
        assert await admitted() == (3 if step == 600 else 0)
    clock.advance(31)
    assert await admitted() == 3


async def test_reservations_are_listed_in_pages(store: CounterStore, reserve: Reserve, clock: FakeClock) -> None:
    await reserve("b", 3, 4)
    await reserve("a")
    (first,) = await store.reservations("acme", "", 1)
    (second,) = await store.reservations("acme", first.order.request_id, 5)
    now = int(clock.now() * 1000)
    assert (first.order.request_id, second.order) == ("a" * 32, Order("b" * 32, ROUTER, 3, 4))
    assert (second.state, second.reserved_at_ms, second.due_ms) == (State.HELD, now, now + 30_000)


async def test_a_limit_that_is_set_later_counts_what_came_before(store: CounterStore) -> None:
    without = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500)
    order = Order("a" * 32, ROUTER, 10, 10)
    await store.reserve("acme", order, rows_of(without, Usage(1, 10, 10)))
    limited = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(tokens_per_minute=30))
    order = Order("b" * 32, ROUTER, 1, 10)
    decision = await store.reserve("acme", order, rows_of(limited, Usage(1, 1, 10)))
    assert decision.violations == (QuotaViolation("tenant:acme", "tokens_per_minute", 30, 20, 11),)


@pytest.mark.parametrize("waited", [0, 30, 59.9])
async def test_peek_says_when_some_of_a_window_is_free_again(
    store: CounterStore, tenant: TenantPolicy, reserve: Reserve, clock: FakeClock, waited: float
) -> None:
    await reserve("a")
    clock.advance(waited)
    states = {state.limit: state for state in await store.peek("acme", rows_of(tenant, Usage(0, 0, 0)))}
    assert states["tokens_per_minute"].resets_in_ms == pytest.approx(61_000 - waited * 1000, abs=1)
    assert states["concurrent_requests"].resets_in_ms == 0


async def test_large_counts_keep_every_digit(store: CounterStore) -> None:
    tenant = TenantPolicy("large", "basic", ServiceClass.BRONZE, 500, limits=Limits(tokens_per_minute=10**12))
    for number in range(1, 4):
        usage = Usage(1, 10**9 - number, 10**9)
        await store.reserve("large", Order(f"{number:032x}", ROUTER, 1, 1), rows_of(tenant, usage))
    assert await used(store, tenant) == {"tokens_per_minute": 6 * 10**9 - 6}


async def test_the_store_answers(store: CounterStore) -> None:
    await store.ping()
