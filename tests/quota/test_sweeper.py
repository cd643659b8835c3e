"""Leases that nobody renews, and outages in which nobody could."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from forebay.errors import Code, MeshError
from forebay.policy.model import ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters, Pulse
from forebay.quota.domain.limits import Usage, rows_of
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.quota.domain.reservations import Observation, Order, Router, State, Swept, Terms
from forebay.quota.sweeper import MOST_AT_ONCE, TOLERANCE_MS, Sweeper
from forebay.testing.clock import FakeClock

LEASE_S = 30.0
TENANT = TenantPolicy("quiet", "basic", ServiceClass.BRONZE, 500)


class Counters(InMemoryCounters):
    """The twin, with an outage at will, and a clock that steps."""

    away = False
    life = "first"
    evicts = ""
    unknown = ""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(Terms(), lambda: int(clock.now() * 1000) + self.ahead_ms)
        self.ahead_ms = 0

    async def ping(self) -> Pulse:
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away")
        return Pulse(self.life, self._now(), self.evicts)

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        if tenant_id == self.unknown:
            raise CountersUnknownError(tenant_id)
        return await super().sweep(tenant_id, most, not_after_ms)


@pytest.fixture
def counters(clock: FakeClock) -> Counters:
    return Counters(clock)


@pytest.fixture
async def reachable(counters: Counters, clock: FakeClock) -> AsyncIterator[list[bool]]:
    told: list[bool] = []
    running = asyncio.create_task(Sweeper(counters, clock, LEASE_S, told.append).run())
    await asyncio.sleep(0)
    yield told
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def pass_time(clock: FakeClock, seconds: int) -> None:
    for _ in range(seconds):
        clock.advance(1)
        for _ in range(10):
            await asyncio.sleep(0)


async def hold(counters: Counters, count: int = 1) -> None:
    for number in range(count):
        order = Order(f"{number:032x}", Router("router-1", 1), 1, 1)
        await counters.reserve("quiet", order, rows_of(TENANT, Usage(1, 1, 1)))


async def states(counters: Counters) -> set[State]:
    return {reservation.state for reservation in await counters.reservations("quiet", "", 1_000)}


async def test_a_quiet_tenants_leases_expire(counters: Counters, clock: FakeClock, reachable: list[bool]) -> None:
    await hold(counters)
    await pass_time(clock, 29)
    assert await states(counters) == {State.HELD}
    await pass_time(clock, 6)
    assert await states(counters) == {State.EXPIRED}
    assert set(reachable) == {True}


async def test_a_sweep_goes_on_until_nothing_is_due(
    counters: Counters, clock: FakeClock, reachable: list[bool]
) -> None:
    await hold(counters, 2 * MOST_AT_ONCE + 1)
    await pass_time(clock, 36)
    assert await states(counters) == {State.EXPIRED}


async def test_after_an_outage_nothing_expires_for_one_lease(
    counters: Counters, clock: FakeClock, reachable: list[bool]
) -> None:
    await hold(counters)
    await pass_time(clock, 20)
    counters.away = True
    await pass_time(clock, 60)
    assert reachable[-1] is False
    counters.away = False
    await pass_time(clock, 29)
    assert reachable[-1] is True
    assert await states(counters) == {State.HELD}
    await pass_time(clock, 6)
    assert await states(counters) == {State.EXPIRED}


async def test_a_tenant_that_cannot_be_rebuilt_holds_up_nobody_else(
    counters: Counters, clock: FakeClock, reachable: list[bool]
) -> None:
    await hold(counters)
    counters.unknown = "lost"
    await counters.begin("lost", lost=True)
    await pass_time(clock, 36)
    assert await states(counters) == {State.EXPIRED}
    assert set(reachable) == {True}


async def test_an_absence_between_two_looks_is_noticed(
    counters: Counters, clock: FakeClock, reachable: list[bool]
) -> None:
    await hold(counters)
    await pass_time(clock, 29)
    counters.life = "second"
    await pass_time(clock, 29)
    assert await states(counters) == {State.HELD}
    await pass_time(clock, 6)
    assert await states(counters) == {State.EXPIRED}


@pytest.mark.parametrize("seconds", [600, 86_400, 400 * 86_400])
async def test_a_clock_that_steps_forward_expires_nothing_for_one_lease(
    counters: Counters, clock: FakeClock, reachable: list[bool], seconds: int
) -> None:
    await hold(counters)
    await pass_time(clock, 20)
    await counters.renew("quiet", Router("router-1", 1), ["0" * 32], [])
    counters.ahead_ms = seconds * 1000
    assert (
        await counters.sweep("quiet", 9, int(clock.now() * 1000) + TOLERANCE_MS) == Swept()
    )  # before the sweeper knows
    await pass_time(clock, 2)
    counters.ahead_ms = 0
    await pass_time(clock, 27)
    assert await states(counters) == {State.HELD}
    await pass_time(clock, 6)
    assert await states(counters) == {State.EXPIRED}


@pytest.mark.parametrize("seconds", [1, 600, 400 * 86_400])
async def test_a_clock_that_steps_back_keeps_no_lease(
    counters: Counters, clock: FakeClock, reachable: list[bool], seconds: int
) -> None:
    await pass_time(clock, 31)
    await hold(counters)
    await pass_time(clock, 1)
    counters.ahead_ms = -seconds * 1000
    await pass_time(clock, 41)  # a round until the step is known
    assert await states(counters) == {State.EXPIRED}


async def test_a_server_that_may_evict_keys_is_warned_of_once(
    counters: Counters, clock: FakeClock, reachable: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("forebay.quota.sweeper.log.warning", lambda _, **values: warnings.append(values["policy"]))
    counters.evicts = "allkeys-lru"
    await pass_time(clock, 5)
    counters.evicts = ""
    await pass_time(clock, 2)
    counters.evicts = "volatile-lru"
    await pass_time(clock, 2)
    assert warnings == ["allkeys-lru", "volatile-lru"]


async def test_after_a_start_nothing_expires_for_one_lease(counters: Counters, clock: FakeClock) -> None:
    await hold(counters)
    await pass_time(clock, 100)  # nobody sweeps
    running = asyncio.create_task(Sweeper(counters, clock, LEASE_S, lambda _: None).run())
    await pass_time(clock, 29)
    assert await states(counters) == {State.HELD}
    await pass_time(clock, 6)
    assert await states(counters) == {State.EXPIRED}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_dead_routers_request_ends_within_a_lease_and_a_round_of_its_usage(
    counters: Counters, clock: FakeClock, reachable: list[bool]
) -> None:
    await hold(counters, 2)
    ended = Observation("0" * 32, 7, {"tokens_per_minute": 2}, final=True)
    await counters.observe("quiet", [ended])
    await pass_time(clock, 36)
    (other,) = await counters.reservations("quiet", "", 10)
    assert (other.order.request_id, other.state) == (f"{1:032x}", State.EXPIRED)
    lost = Observation(f"{1:032x}", 8, {"tokens_per_minute": 2}, final=False)
    await counters.observe("quiet", [lost])
    await pass_time(clock, 36)
    assert await counters.reservations("quiet", "", 10) == []
