"""What routers are told: which part, of which limits, and that nobody has it twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import pytest

from forebay.api.quota.v1 import quota_pb2
from forebay.errors import Code, MeshError
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, Limits, LossPolicy, ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.limits import Row, Usage, rows_of
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.quota.domain.reservations import LimitState, Order, Router, Terms
from forebay.quota.domain.shares import WINDOW_S
from forebay.quota.local_shares import REFRESH_S, LocalShares, Seat
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.testing.clock import FakeClock

LIMITS = Limits(requests_per_minute=60, tokens_per_day=1_000, daily_budget_nano_usd=9_000)
OPEN = TenantPolicy(
    "open",
    "basic",
    ServiceClass.BRONZE,
    500,
    limits=LIMITS,
    model_limits={"small": Limits(requests_per_minute=6)},
    loss_policy=LossPolicy.FAIL_OPEN,
)
CLOSED = TenantPolicy("closed", "basic", ServiceClass.BRONZE, 500, limits=LIMITS)
KEY = KeyPolicy("k1", "open", b"", limits=Limits(concurrent_requests=4))
TABLE = PriceTable([Price("default", "prompt_tokens", 5), Price("model:big", "prompt_tokens", 7)])


class Counters(InMemoryCounters):
    away = False
    unknown = ""

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        if tenant_id == self.unknown:
            raise CountersUnknownError(tenant_id)
        return await super().peek(tenant_id, rows)

    async def ping(self) -> str:
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away")
        return await super().ping()


@dataclass
class Told:
    """A router: what it was told last, which it acknowledges at once unless it is silent."""

    world: World
    name: str
    silent: bool = False
    share: quota_pb2.LocalShare = field(default_factory=quota_pb2.LocalShare)
    seat: Seat | None = None

    def join(self, **held: int) -> None:
        self.seat = self.world.shares.join(self.name, quota_pb2.LocalShareHeld(**held), self.hear)  # type: ignore[arg-type]

    def leave(self) -> None:
        assert self.seat is not None
        self.world.shares.leave(self.seat)

    def hear(self, share: quota_pb2.LocalShare) -> None:
        self.share = share
        if not self.silent:
            asyncio.get_running_loop().call_soon(self.acknowledge)

    def acknowledge(self) -> None:
        assert self.seat is not None
        held = quota_pb2.LocalShareHeld(number=self.share.number, parts=self.share.parts)
        self.world.shares.held(self.seat, held)

    async def told(self, parts: int) -> None:
        async with asyncio.timeout(60):
            while self.share.parts != parts or not self.share.number:
                await asyncio.sleep(0)


class World:
    def __init__(self, clock: FakeClock, folder: Path) -> None:
        self.clock = clock
        self.counters = Counters(Terms(), lambda: int(clock.now() * 1000))
        self.feed = PolicyFeed(Policies({"open": OPEN, "closed": CLOSED}, {"k1": KEY}), clock)
        self.prices = Prices(TABLE)
        self.file = folder / "shares"
        self.shares = self.life()

    def life(self) -> LocalShares:
        return LocalShares(
            self.feed,
            self.counters,
            self.prices,
            self.clock,
            replicas=2,
            lease_s=100.0,
            global_limit=100,
            file=self.file,
        )

    def router(self, name: str) -> Told:
        return Told(self, name)

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / REFRESH_S) + 1):
            self.clock.advance(REFRESH_S)
            for _ in range(20):
                await asyncio.sleep(0)


@pytest.fixture
async def world(clock: FakeClock, tmp_path: Path) -> AsyncIterator[World]:
    world = World(clock, tmp_path)
    async with background(world.shares.run(), "shares"):
        yield world


def limits_of(share: quota_pb2.LocalShare) -> dict[str, int]:
    (allowance,) = share.allowances
    assert allowance.tenant_id == "open"
    return {f"{limit.subject}/{limit.limit}": limit.value for limit in allowance.limits}


async def test_no_more_is_told_than_a_message_has_room_for(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.quota.local_shares.MAX_LIMITS", 11)
    world = World(clock, tmp_path)
    tenants = {name: replace(OPEN, tenant_id=name) for name in ("t1", "t2", "t3")}
    revoked = {f"k{n}": replace(KEY, key_id=f"k{n}", tenant_id="t1", revoked=True) for n in range(9)}
    world.feed.publish(Policies(tenants, revoked))
    router = world.router("router-1")
    async with background(world.shares.run(), "shares"):
        router.join()
        await router.told(1)
    assert [len(each.limits) for each in router.share.allowances] == [5, 5]
    assert [each.tenant_id for each in router.share.allowances] == ["t1", "t2"]


async def test_a_router_is_told_its_part_of_every_limit_of_who_fails_open(world: World) -> None:
    order = Order("a" * 32, Router("router-1", 1), 100, 100)
    await world.counters.reserve(
        "open", order, rows_of(OPEN, Usage(1, 100, 100, cost_nano_usd=1_000), world.clock.now())
    )
    a, b = world.router("a"), world.router("b")
    a.join()
    b.join()
    await b.told(2)
    await world.pass_time(REFRESH_S)
    assert a.share.parts == 2
    assert limits_of(b.share) == {
        "tenant:open/requests_per_minute": 15,
        "tenant:open/tokens_per_day": 200,
        "tenant:open/daily_budget_nano_usd": 2_000,
        "tenant:open/model:small/requests_per_minute": 1,
        "key:k1/concurrent_requests": 1,
        "mesh/requests_per_second": 25,
    }
    assert b.share.allowances[0].nano_usd_per_million_prompt_tokens == 7
    rows = rows_of(OPEN, Usage(1, 1, 1), world.clock.now())
    left = {row.limit: world.shares.left(row) for row in rows}
    assert (left["tokens_per_day"], left["daily_budget_nano_usd"], left["monthly_budget_nano_usd"]) == (800, 8_000, 0)


async def test_a_tenant_with_a_budget_and_no_prices_has_no_allowance(world: World) -> None:
    world.prices.table = None
    a = world.router("a")
    a.join()
    await a.told(1)
    first = a.share.number
    await world.pass_time(REFRESH_S)
    assert a.share.number > first
    assert not a.share.allowances


async def test_of_a_tenant_that_cannot_be_rebuilt_stands_what_was_said_last(world: World) -> None:
    world.feed.publish(Policies({"open": OPEN, "other": replace(OPEN, tenant_id="other")}, {}))
    await world.pass_time(REFRESH_S)
    world.counters.unknown = "open"
    usage = Usage(1, 250, 250)
    for tenant in (OPEN, replace(OPEN, tenant_id="other")):
        order = Order(tenant.tenant_id[:1] * 32, Router("a", 1), 250, 250)
        await world.counters.reserve(tenant.tenant_id, order, rows_of(tenant, usage, world.clock.now()))
    await world.pass_time(REFRESH_S)
    a = world.router("a")
    a.join()
    await a.told(1)
    left = {
        allowance.tenant_id: limit.value
        for allowance in a.share.allowances
        for limit in allowance.limits
        if limit.limit == "tokens_per_day"
    }
    assert left == {"open": 500, "other": 250}
    assert await world.shares.claim() == 1
    world.clock.advance(WINDOW_S)
    b = world.router("b")
    b.join()
    await b.told(0)  # the counters are away for some


async def test_nobody_has_what_a_silent_router_may_still_have(world: World) -> None:
    a, b = world.router("a"), world.router("b")
    a.join()
    await a.told(1)
    a.silent = True
    b.join()
    await b.told(0)
    a.acknowledge()
    await b.told(2)


async def test_quota_admits_by_itself_what_routers_have_given_back(world: World) -> None:
    a = world.router("a")
    a.join()
    await a.told(1)
    world.counters.away = True
    assert await world.shares.claim() == Fraction(1)
    assert a.share.parts == 0
    world.counters.away = False
    await world.pass_time(WINDOW_S)
    await a.told(1)


async def test_quota_leaves_alone_what_a_router_that_is_cut_off_may_have(world: World) -> None:
    a = world.router("a")
    a.join()
    await a.told(1)
    a.leave()
    world.counters.away = True
    assert await world.shares.claim() == 0


async def test_the_next_life_counts_what_was_given_out_and_what_it_admitted(world: World) -> None:
    a = world.router("a")
    a.join()
    await a.told(1)
    world.shares = world.life()
    world.counters.away = True
    assert await world.shares.claim() == 0
    world.counters.away = False
    async with background(world.shares.run(), "next life"):
        b = world.router("b")
        b.join()
        await b.told(0)
        a.join(parts=1)
        await b.told(2)


async def test_nothing_is_given_out_that_cannot_be_kept(world: World) -> None:
    world.file.with_suffix(".next").mkdir()
    assert await world.shares.claim() == 0
    a = world.router("a")
    a.join()
    async with asyncio.timeout(60):
        while a.seat is None or a.seat.number < 2:
            await world.pass_time(REFRESH_S)
    assert a.share.number == 0
