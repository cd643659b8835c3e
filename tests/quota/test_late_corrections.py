"""Rows that the ledger gets after a reservation is settled: they reach days and months once, in whatever order they come."""

from __future__ import annotations

import itertools

import pytest

from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Observation, Order, Outcome, Router
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1)
LIMITS = Limits(tokens_per_minute=10_000, tokens_per_day=10_000, monthly_budget_nano_usd=10_000)
ACME = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=LIMITS)
A = "a" * 32


def usage(completion: int, cost: int | None = None) -> Usage:
    return Usage(1, 10, completion, cost_nano_usd=10 + completion if cost is None else cost)


def row(position: int, completion: int, cost: int | None = None, *, final: bool = True) -> Observation:
    """What all rows of the request come to as of one of them."""
    return Observation(A, position, amounts_of(usage(completion, cost)), final)


async def reserve(store: CounterStore, clock: FakeClock) -> Outcome:
    rows = rows_of(ACME, usage(50), clock.now())
    return (await store.reserve("acme", Order(A, ROUTER, 10, 50), rows)).outcome


async def settle(store: CounterStore, completion: int, cost: int | None = None) -> bool:
    return await store.settle("acme", A, amounts_of(usage(completion, cost)))


async def used(store: CounterStore, clock: FakeClock) -> tuple[int, int, int]:
    """Returns the tokens of the minute and of the day, and the nano-USD of the month."""
    states = await store.peek("acme", rows_of(ACME, Usage(0, 0, 0), clock.now()))
    shown = {state.limit: state.used for state in states}
    return shown["tokens_per_minute"], shown["tokens_per_day"], shown["monthly_budget_nano_usd"]


async def test_what_a_worker_that_hung_says_late_is_charged_once(store: CounterStore, clock: FakeClock) -> None:
    await reserve(store, clock)
    assert await settle(store, 5)
    assert await store.observe("acme", [row(1, 5)]) == 1
    assert await used(store, clock) == (15, 15, 15)
    assert await store.observe("acme", [row(2, 7)]) == 1
    assert await store.observe("acme", [row(2, 7), row(1, 5)]) == 0
    assert await used(store, clock) == (15, 17, 17)  # the minute stays at what was known in it
    assert not await settle(store, 9)
    assert await used(store, clock) == (15, 17, 17)
    assert (await store.totals("acme", rows_of(ACME, Usage(0, 0, 0), clock.now()))).counted["tenant:acme/tokens_per_day"] == 17  # type: ignore[union-attr]  # fmt: skip


async def test_only_the_cost_may_change_and_fall(store: CounterStore, clock: FakeClock) -> None:
    await reserve(store, clock)
    await settle(store, 5, cost=100)
    await store.observe("acme", [row(1, 5, cost=90)])
    assert await used(store, clock) == (15, 15, 90)


async def test_a_ledger_that_lacks_rows_yet_takes_nothing_away(store: CounterStore, clock: FakeClock) -> None:
    await reserve(store, clock)
    await settle(store, 9)
    assert await store.observe("acme", [row(1, 4, final=False)]) == 1
    assert await store.observe("acme", [row(1, 4, final=False)]) == 0
    assert await used(store, clock) == (19, 19, 19)
    assert await store.observe("acme", [row(2, 9, cost=18)]) == 1
    assert await used(store, clock) == (19, 19, 18)


async def test_a_reservation_that_was_settled_without_usage_is_charged_when_it_comes(
    store: CounterStore, clock: FakeClock
) -> None:
    await reserve(store, clock)
    clock.advance(30)
    await store.sweep("acme", 10)
    clock.advance(3_600)
    assert (await store.sweep("acme", 10)).settled == 1
    assert await used(store, clock) == (0, 0, 0)
    await store.observe("acme", [row(1, 5, final=False)])
    await store.observe("acme", [row(2, 9)])
    assert await used(store, clock) == (0, 19, 19)


async def test_a_repeated_reserve_still_finds_whose_it_was(store: CounterStore, clock: FakeClock) -> None:
    await reserve(store, clock)
    await settle(store, 5)
    await store.observe("acme", [row(1, 6)])
    assert await reserve(store, clock) is Outcome.ADMITTED
    other = rows_of(ACME, usage(50), clock.now())
    assert (await store.reserve("acme", Order(A, Router("router-2", 1), 10, 50), other)).outcome is Outcome.TAKEN
    assert await used(store, clock) == (15, 16, 16)


async def test_a_day_that_is_over_is_not_charged(store: CounterStore, clock: FakeClock) -> None:
    clock.advance(86_400 - clock.now() % 86_400 - 30)
    await reserve(store, clock)
    await settle(store, 5)
    clock.advance(40)
    rows = rows_of(ACME, usage(50), clock.now())
    await store.reserve("acme", Order("b" * 32, ROUTER, 10, 50), rows)
    before = await used(store, clock)
    await store.observe("acme", [row(1, 7)])
    after = await used(store, clock)
    assert (after[1] - before[1], after[2] - before[2]) == (0, 2)


@pytest.mark.parametrize("settled_at", range(5))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_in_any_order_the_budget_comes_to_what_the_ledger_has(
    bare_store: CounterStore, clock: FakeClock, order: tuple[int, ...], settled_at: int
) -> None:
    """The first attempt was lost and reported by its router, the second ended the request, and the first's worker woke up."""
    await bare_store.begin("acme", lost=False)
    rows = [row(1, 4, final=False), row(2, 9), row(3, 9, cost=15)]
    await reserve(bare_store, clock)
    for number, which in enumerate(order):
        if number == settled_at:
            await settle(bare_store, 9)
        await bare_store.observe("acme", [rows[which]])
    if settled_at >= len(order):
        await settle(bare_store, 9)
    assert await used(bare_store, clock) == (19, 19, 15)


@pytest.mark.parametrize("settled_at", range(3))
async def test_a_ledger_that_clips_an_attempt_later_takes_back_what_it_billed_before(
    bare_store: CounterStore, clock: FakeClock, settled_at: int
) -> None:
    """The first worker was two tokens ahead of its router, which is billed until the row of the attempt after it comes."""
    await bare_store.begin("acme", lost=False)
    await reserve(bare_store, clock)
    for number, each in enumerate((row(1, 11), row(2, 9))):
        if number == settled_at:
            await settle(bare_store, 9)
        await bare_store.observe("acme", [each])
    if settled_at == 2:
        await settle(bare_store, 9)
    assert await used(bare_store, clock) == (19, 19, 19)


async def test_what_nobody_settled_follows_the_ledger_down_too(store: CounterStore, clock: FakeClock) -> None:
    await reserve(store, clock)
    await store.observe("acme", [row(1, 11)])
    clock.advance(30)
    while (await store.sweep("acme", 10)).total:
        pass
    await store.observe("acme", [row(2, 9)])
    assert (await used(store, clock))[1:] == (19, 19)


@pytest.mark.parametrize("observed_first", [False, True])
async def test_what_a_worker_and_a_router_that_died_could_not_tell_is_taken_back_in_the_end(
    store: CounterStore, clock: FakeClock, observed_first: bool
) -> None:
    """The spool was a second behind, and the router settled but did not report."""
    await reserve(store, clock)
    if observed_first:
        await store.observe("acme", [row(1, 5)])
    await settle(store, 9)
    await store.observe("acme", [row(1, 5)])
    assert await used(store, clock) == (19, 19, 19)
    clock.advance(600)
    assert (await store.sweep("acme", 10)).forgotten == 1
    assert (await used(store, clock))[1:] == (15, 15)
