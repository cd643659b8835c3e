"""When a refusal says to try again: what is used comes back when the limit says so, what is held when a request ends."""

from __future__ import annotations

import itertools

import pytest

from forebay.policy.durations import LEAST_MS, MOST_MS, REMEMBERED, UNKNOWN_MS, Durations
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Order, Outcome, Router
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1)
# Each request holds 100 of the limit.
LIMITS = {
    "monthly_budget_nano_usd": Limits(monthly_budget_nano_usd=400),
    "tokens_per_day": Limits(tokens_per_day=400),
    "tokens_per_minute": Limits(tokens_per_minute=400),
}


class Desk:
    """Requests of one tenant, each of which holds 100 of a limit, on one store."""

    def __init__(self, store: CounterStore, clock: FakeClock, limits: Limits) -> None:
        self._store, self._clock = store, clock
        self._tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=limits)
        self._numbers = itertools.count()

    async def ask(self) -> tuple[str, int]:
        """Returns the request id and 0 if it is admitted, else "" and the wait in ms."""
        order = Order(f"{next(self._numbers):032x}", ROUTER, 0, 100)
        usage = Usage(1, 0, 100, cost_nano_usd=100)
        decision = await self._store.reserve("acme", order, rows_of(self._tenant, usage, self._clock.now()))
        return (order.request_id, 0) if decision.outcome is Outcome.ADMITTED else ("", decision.retry_after_ms)

    async def end(self, request_id: str, used: int, after_s: float = 0.0) -> None:
        self._clock.advance(after_s)
        await self._store.settle("acme", request_id, amounts_of(Usage(1, 0, used, cost_nano_usd=used)))


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_runs_is_expected_to_end_as_recent_requests_did(
    store: CounterStore, clock: FakeClock, limit: str
) -> None:
    desk = Desk(store, clock, LIMITS[limit])
    for seconds in (0.2, 9.0, 0.3):
        request_id, _ = await desk.ask()
        await desk.end(request_id, 0, seconds)
    held = [(await desk.ask())[0] for _ in range(4)]
    assert await desk.ask() == ("", 300)
    await desk.end(held.pop(), 10)  # it gives 90 of 100 back, and of 0.1, 0.2, 0.3 and 9 s the median is the second
    assert await desk.ask() == ("", 200)
    await desk.end(held.pop(), 10)
    assert (await desk.ask())[0]


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_is_used_comes_back_when_the_limit_says_so(
    store: CounterStore, clock: FakeClock, limit: str
) -> None:
    desk = Desk(store, clock, LIMITS[limit])
    for _ in range(3):
        request_id, _ = await desk.ask()
        await desk.end(request_id, 100)
    running, _ = await desk.ask()
    assert await desk.ask() == ("", LEAST_MS)  # if what runs used nothing, there would be room
    await desk.end(running, 50)
    _, wait_ms = await desk.ask()  # nothing runs
    assert wait_ms >= 60_000


async def test_an_expired_lease_and_a_minute_that_is_over_are_not_waited_for(
    store: CounterStore, clock: FakeClock
) -> None:
    desk = Desk(store, clock, Limits(tokens_per_minute=100, tokens_per_day=400))
    running, _ = await desk.ask()
    assert await desk.ask() == ("", UNKNOWN_MS)
    clock.advance(30)
    assert (await store.sweep("acme", 9)).expired == 1
    assert (await desk.ask())[1] == 31_000
    assert await store.renew("acme", ROUTER, [running], []) == []
    assert (await desk.ask())[1] == UNKNOWN_MS
    clock.advance(31)  # what runs has left the minute, and another fills it
    other, _ = await desk.ask()
    await desk.end(other, 100)
    assert (await desk.ask())[1] == 61_000


async def test_concurrent_requests_are_waited_for_by_the_median(store: CounterStore, clock: FakeClock) -> None:
    desk = Desk(store, clock, Limits(concurrent_requests=1))
    running, _ = await desk.ask()
    assert await desk.ask() == ("", UNKNOWN_MS)
    await desk.end(running, 0, 7.5)
    await desk.ask()
    assert await desk.ask() == ("", 7_500)


def test_durations_are_few_and_within_bounds() -> None:
    durations = Durations()
    assert durations.median_ms == UNKNOWN_MS
    for _ in range(REMEMBERED):
        durations.ended(10**9)
    assert durations.median_ms == MOST_MS
    for _ in range(REMEMBERED // 2 + 1):
        durations.ended(0)
    assert durations.median_ms == LEAST_MS
