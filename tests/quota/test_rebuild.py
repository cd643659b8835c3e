"""A tenant whose counters are lost: what it is refused until it is known again, and what is known then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import Code, MeshError
from forebay.journal import Journal
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.limits import Usage
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.quota.domain.reservations import Hold, Lease, Order, Outcome, Router, Terms
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.redis_counters import RedisCounters
from forebay.quota.service import Quota
from forebay.quota.surviving_counters import SurvivingCounters
from forebay.quota.usage_sums import Attempt, InMemorySums, Used
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1_700_000_000_123_456)
# A dollar for a thousand tokens.
USD_A_TOKEN = 10**6
KEYS = ("counters", "reservations", "settled", "due")
ITEMS = ("prompt_tokens", "cached_tokens", "completion_tokens")
PRICES = Prices(PriceTable([Price("default", item, USD_A_TOKEN * 10**6) for item in ITEMS]))
BUDGET = "daily_budget_nano_usd"


class Ledger(InMemorySums):
    """The twin, with an outage at will, and counting how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def used(self, *arguments: Any, **named: Any) -> Mapping[str, Used]:
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", "away")
        return await super().used(*arguments, **named)


class World:
    """One tenant at one router, quota's replicas over one store, and the ledger that workers report to."""

    def __init__(self, store: CounterStore, clock: FakeClock, limits: Limits, **fields: Any) -> None:
        key_limits = fields.pop("key_limits", Limits())
        tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=limits, **fields)
        policies = Policies({"acme": tenant}, {"k": KeyPolicy("k", "acme", b"h" * 32, limits=key_limits)}, {})
        self.store, self.clock, self.feed = store, clock, PolicyFeed(policies, clock)
        self.ledger = Ledger()
        self.quota = self.replica()
        self.live: dict[str, Hold] = {}
        self.count = 0

    def replica(self) -> Quota:
        """Returns another process of quota, or another life of one."""
        self.counters = RebuildingCounters(self.store, self.feed, self.ledger, self.clock.now)
        return Quota(self.feed, self.counters, PRICES, self.clock.now)

    async def ask(self, prompt: int = 10, completion: int = 20) -> str:
        """Reserves as a router does; returns the request id, or "" for a refusal."""
        self.count += 1
        order = Order(f"{self.count:032x}", ROUTER, prompt, completion)
        try:
            await self.quota.reserve("acme", order, "k", "m")
        except MeshError as error:
            if error.code is not Code.RESOURCE_EXHAUSTED:
                raise
            return ""
        self.live[order.request_id] = Hold(order, "k", "m", self.clock.now())
        return order.request_id

    async def end(self, request_id: str, completion: int = 5) -> bool:
        """Settles a request after its worker has reported it."""
        hold = self.live.pop(request_id)
        prompt = hold.order.prompt_tokens
        tokens = prompt + completion
        used = Used(1, tokens, tokens * USD_A_TOKEN)
        self.ledger.attempts.append(Attempt(request_id, "acme", used, int(self.clock.now() * 1000), "k", "m"))
        return await self.quota.settle(Lease("acme", request_id, hold), Usage(1, prompt, completion), "m")

    async def charge(self, prompt: int = 10, completion: int = 20, ago_s: float = 0.0) -> str:
        """Tells of a request that the router admitted by itself; returns the request id."""
        self.count += 1
        order, admitted_s = Order(f"{self.count:032x}", ROUTER, prompt, completion), self.clock.now() - ago_s
        await self.quota.charge("acme", order, admitted_s, "k", "m", orphaned=False)
        self.live[order.request_id] = Hold(order, "k", "m", admitted_s)
        return order.request_id

    async def renew(self) -> list[str]:
        """Renews what the router holds; returns what is lost."""
        return await self.quota.renew(ROUTER, [Lease("acme", *held) for held in self.live.items()])

    async def lose(self) -> None:
        """Makes the store forget the tenant."""
        await lose(self.store)

    async def used(self) -> Mapping[str, int]:
        return {f"{each.subject}/{each.limit}": each.used for each in await self.quota.peek("acme", "k", "m")}


async def lose_keys(store: RedisCounters, *parts: str) -> None:
    await store._redis.delete(*(f"forebay:{{acme}}:{part}" for part in parts))


async def lose(store: CounterStore) -> None:
    if isinstance(store, InMemoryCounters):
        await store.lose("acme")
    else:
        assert isinstance(store, RedisCounters)
        await lose_keys(store, *KEYS)


async def test_a_lost_minute_is_full_until_nothing_of_it_can_count(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(requests_per_minute=3))
    assert [bool(await world.ask()) for _ in range(4)] == [True, True, True, False]
    await world.lose()
    with pytest.raises(MeshError) as caught:
        await world.quota.reserve("acme", Order("a" * 32, ROUTER, 1, 1), "k", "m")
    assert (caught.value.reason, caught.value.retry_after) == ("REQUESTS_PER_MINUTE", 61)
    clock.advance(60.999)
    assert not await world.ask()
    clock.advance(0.001)
    assert [bool(await world.ask()) for _ in range(4)] == [True, True, True, False]


async def test_running_requests_keep_their_places_and_are_the_only_ones(
    bare_store: CounterStore, clock: FakeClock
) -> None:
    world = World(bare_store, clock, Limits(concurrent_requests=3), key_limits=Limits(concurrent_requests=2))
    running = [await world.ask() for _ in range(2)]
    await world.lose()
    assert not await world.ask()
    assert await world.renew() == []
    assert await world.used() == {"tenant:acme/concurrent_requests": 3, "key:k/concurrent_requests": 2}
    clock.advance(20)
    assert await world.renew() == []
    assert not await world.ask()
    clock.advance(10)
    assert await world.used() == {"tenant:acme/concurrent_requests": 2, "key:k/concurrent_requests": 2}
    assert not await world.ask()
    assert await world.end(running[0])
    assert await world.ask()


async def test_days_and_months_are_the_ledgers_sums_and_what_is_held(
    bare_store: CounterStore, clock: FakeClock
) -> None:
    limits = Limits(daily_budget_nano_usd=1_000 * USD_A_TOKEN, monthly_budget_nano_usd=2_000 * USD_A_TOKEN)
    day = Limits(tokens_per_day=500)
    world = World(bare_store, clock, limits, key_limits=day, model_limits={"m": day}, time_zone="Asia/Tokyo")
    await world.end(await world.ask(), 10)  # yesterday, and in this month
    clock.advance(86_400)
    running, ended, again = [await world.ask(20, 20) for _ in range(3)]
    await world.end(ended, 10)
    hold = world.live[again]
    await world.end(again, 15)
    before = await world.used()
    await world.lose()
    # A settlement that nobody has acknowledged comes again, and an attempt that has ended is in the ledger already.
    assert await world.quota.settle(Lease("acme", again, hold), Usage(1, 20, 15), "m")
    world.ledger.attempts.append(Attempt(running, "acme", Used(1, 21, 21), int(clock.now() * 1000), "k", "m"))
    assert await world.renew() == []
    assert not await world.ask()
    clock.advance(20)
    assert await world.renew() == []
    clock.advance(10)
    assert await world.used() == before
    assert await world.end(running, 12)
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == (30 + 35 + 32) * USD_A_TOKEN
    assert await world.ask()


async def test_calls_share_one_rebuild_and_replicas_do_not_add_up(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(daily_budget_nano_usd=1_000 * USD_A_TOKEN))
    await world.end(await world.ask(), 10)
    await world.lose()
    replicas = [world.quota, *(world.replica() for _ in range(3))]

    async def peek() -> set[int]:
        states = await asyncio.gather(*(quota.peek("acme") for quota in replicas for _ in range(5)))
        return {state.used for (state,) in states}

    world.ledger.asked = 0
    assert await peek() == {1_000 * USD_A_TOKEN}
    assert world.ledger.asked == len(replicas) - 1  # the first one has seen the tenant before
    clock.advance(30)
    assert await peek() == {20 * USD_A_TOKEN}
    assert world.ledger.asked <= 6 * len(replicas)


async def test_who_begins_second_changes_nothing(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(concurrent_requests=2))
    assert await bare_store.begin("acme", lost=True)
    world.live["a" * 32] = Hold(Order("a" * 32, ROUTER, 1, 1), "k", "m", clock.now())
    assert await world.renew() == []
    assert not await bare_store.begin("acme", lost=False)
    assert not await world.ask()
    assert len(await bare_store.reservations("acme", "", 9)) == 1


async def test_quiet_tenants_are_rebuilt_by_the_sweep(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(daily_budget_nano_usd=1_000 * USD_A_TOKEN))
    await world.ask()
    await world.lose()
    await world.renew()
    clock.advance(30)
    world.ledger.away = True
    with pytest.raises(CountersUnknownError):
        await world.counters.sweep("acme", 10)
    world.ledger.away = False
    assert (await world.counters.sweep("acme", 10)).expired == 1
    assert await bare_store.gathered("acme") is None


async def test_nobody_is_stopped_for_a_budget_that_is_not_known(clock: FakeClock) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(daily_budget_nano_usd=1_000 * USD_A_TOKEN), stop_on_budget=True)
    lease = Lease("acme", await world.ask())
    await world.lose()
    assert await world.renew() == []
    clock.advance(30)
    world.ledger.away = True
    assert await world.quota.over_budget([lease]) == []


async def test_a_hold_that_comes_too_late_is_lost(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(concurrent_requests=2))
    request_id = await world.ask()
    await world.lose()
    await world.quota.peek("acme")
    clock.advance(30)
    assert await world.renew() == [request_id]
    assert not await world.end(request_id)


@pytest.mark.parametrize("knows", ["process", "ledger", "router", "settlement", "nobody", "long ago"])
async def test_a_tenant_is_new_if_nobody_knows_it(clock: FakeClock, knows: str) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(requests_per_minute=3))
    request_id = await world.ask()
    hold = world.live[request_id]
    await world.lose()
    if knows != "process":
        world.quota = world.replica()
    if knows == "ledger":
        world.ledger.attempts.append(Attempt(request_id, "acme", Used(1, 1, 1), int(clock.now() - 31 * 86_400) * 1000))
    elif knows == "router":
        assert await world.renew() == []
    elif knows == "settlement":
        assert await world.quota.settle(Lease("acme", request_id, hold), Usage(1, 1, 1))
    elif knows == "long ago":
        world.ledger.attempts.append(Attempt(request_id, "acme", Used(1, 1, 1), int(clock.now() - 35 * 86_400) * 1000))
    else:
        # An abandoned reservation: nothing was used.
        assert not await world.quota.settle(Lease("acme", "f" * 32), Usage(0, 0, 0))
    assert bool(await world.ask()) == (knows in ("nobody", "long ago"))


async def test_a_month_of_silence_is_forgotten_by_everyone(bare_store: CounterStore, clock: FakeClock) -> None:
    world = World(bare_store, clock, Limits(requests_per_minute=3))
    await world.end(await world.ask())
    clock.advance(35 * 86_400)
    await world.lose()
    assert await world.ask()


async def test_what_comes_to_be_known_while_the_ledger_is_asked_counts(clock: FakeClock) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(requests_per_minute=3))
    await world.ask()
    await world.lose()
    world.quota = world.replica()
    world.ledger.answers.clear()
    asked = asyncio.create_task(world.ask())
    while not world.ledger.asked:
        await asyncio.sleep(0)
    renewed = asyncio.create_task(world.renew())  # of a router whose session has just begun
    for _ in range(5):  # until it waits for the same rebuild
        await asyncio.sleep(0)
    world.ledger.answers.set()
    assert (await asked, await renewed) == ("", [])


async def test_without_the_ledger_nobody_knows(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(requests_per_minute=3))
    world.ledger.away = True
    order = Order("a" * 32, ROUTER, 1, 1)
    for silent in (False, True):
        if silent:
            world.ledger.answers.clear()
            monkeypatch.setattr("forebay.quota.rebuilding_counters.WAIT_S", 0.001)
        with pytest.raises(MeshError) as caught:
            await world.quota.reserve("acme", order)
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "COUNTERS_UNKNOWN")
    world.ledger.away = False
    world.ledger.answers.set()
    assert (await world.quota.reserve("acme", order)).outcome is Outcome.ADMITTED


def surviving(world: World, folder: Path, left: int = 1_000 * USD_A_TOKEN) -> SurvivingCounters:
    """Returns what quota asks where tenants fail open; of a day or a month so much was left."""

    async def claim() -> Fraction:
        return Fraction(1)

    journal = Journal(folder / "journal")
    return SurvivingCounters(
        world.counters, world.clock, Terms(), "acme".__eq__, 2, 60.0, journal, claim, lambda row: left
    )


async def test_who_fails_open_goes_on_and_is_charged_once(clock: FakeClock, tmp_path: Path) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(requests_per_minute=4, daily_budget_nano_usd=1_000 * USD_A_TOKEN))
    await world.end(await world.ask())
    await world.lose()
    world.ledger.away = True
    world.replica()
    world.quota = Quota(world.feed, surviving(world, tmp_path), PRICES, clock.now)
    first, second = await world.ask(), await world.ask()
    assert first
    assert second
    assert not await world.ask()
    assert await world.end(first)
    world.ledger.away = False
    assert await world.renew() == []
    clock.advance(30)
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == (15 + 15 + 30) * USD_A_TOKEN + 1  # held is rounded up
    assert await world.end(second)
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == 45 * USD_A_TOKEN


async def test_what_a_router_admitted_by_itself_counts_once_in_a_tenant_that_gathers(
    bare_store: CounterStore, clock: FakeClock
) -> None:
    world = World(bare_store, clock, Limits(requests_per_minute=2, daily_budget_nano_usd=1_000 * USD_A_TOKEN))
    await world.end(await world.ask())
    await world.lose()
    first, second = await world.charge(), await world.charge()
    assert not await world.ask()
    assert await world.end(first)
    clock.advance(30)
    assert await world.renew() == []
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == (15 + 15 + 30) * USD_A_TOKEN + 1  # held is rounded up
    assert await world.end(second)
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == 45 * USD_A_TOKEN


async def test_what_was_admitted_on_another_day_does_not_count_on_this_one(
    bare_store: CounterStore, clock: FakeClock
) -> None:
    budget = 1_000 * USD_A_TOKEN
    world = World(bare_store, clock, Limits(daily_budget_nano_usd=budget, monthly_budget_nano_usd=budget))
    await world.end(await world.ask())
    await world.end(await world.charge(ago_s=86_400))
    assert [used // USD_A_TOKEN for used in (await world.used()).values()] == [15, 30]


async def test_a_tenant_that_cannot_be_rebuilt_holds_up_no_others_replay(clock: FakeClock, tmp_path: Path) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits())
    journal = Journal(tmp_path / "journal")
    for tenant_id in ("acme", "other"):
        order = Order(f"{world.count:032x}", ROUTER, 10, 20)
        journal.append(tenant=tenant_id, order=asdict(order), rows=[])
    await journal.close()
    await store.begin("other", lost=False)
    world.ledger.away = True
    async with background(surviving(world, tmp_path).run(), "journal"):
        while not await store.reservations("other", "", 1):
            await asyncio.sleep(0)
    assert not await store.reservations("acme", "", 1)


async def test_a_tenant_that_cannot_be_rebuilt_keeps_no_others_hold_from_being_taken_in(
    clock: FakeClock, tmp_path: Path
) -> None:
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, Limits(concurrent_requests=1))
    other = replace(world.feed.policies.tenants["acme"], tenant_id="other")
    world.feed.publish(replace(world.feed.policies, tenants={**world.feed.policies.tenants, "other": other}))
    journal = Journal(tmp_path / "journal")
    journal.append(tenant="acme", order=asdict(Order("a" * 32, ROUTER, 10, 20)), rows=[])
    await journal.close()
    world.ledger.away = True
    quota = Quota(world.feed, surviving(world, tmp_path), PRICES, clock.now)
    await store.begin("other", lost=True)
    held = Hold(Order("b" * 32, ROUTER, 10, 20), "", "m", clock.now())
    assert await quota.renew(ROUTER, [Lease("acme", "a" * 32), Lease("other", "b" * 32, held)]) == []
    assert [each.order for each in await store.reservations("other", "", 9)] == [held.order]


async def test_a_routers_clock_that_is_ahead_opens_no_day_before_its_time(
    bare_store: CounterStore, clock: FakeClock
) -> None:
    budget = 1_000 * USD_A_TOKEN
    world = World(bare_store, clock, Limits(daily_budget_nano_usd=budget, monthly_budget_nano_usd=budget))
    await world.end(await world.ask())
    running = await world.ask()
    await world.lose()
    world.live[running] = replace(world.live[running], reserved_at_s=clock.now() + 40 * 86_400)
    assert await world.renew() == []
    assert await world.end(running)
    clock.advance(30)
    assert [used // USD_A_TOKEN for used in (await world.used()).values()] == [30, 30]


@pytest.mark.parametrize("seed", range(8))
async def test_no_limit_is_passed_and_no_request_lost_whenever_the_counters_are(clock: FakeClock, seed: int) -> None:
    """A tenant that asks for all that it can have, while its counters are lost at any moment and quota is restarted."""
    chance = random.Random(seed)
    store = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    day = 400 * USD_A_TOKEN
    limits = Limits(requests_per_minute=6, tokens_per_minute=200, concurrent_requests=3, daily_budget_nano_usd=day)
    world = World(store, clock, limits)
    admitted: list[tuple[float, str]] = []
    spent: dict[str, int] = {}
    refused = losses = 0
    for step in range(500):
        clock.advance(chance.choice([0.0, 0.1, 1.0, 2.5]))
        act = chance.random()
        if act < 0.6:
            request_id = await world.ask(10, 20)
            if request_id:
                admitted.append((clock.now(), request_id))
                spent[request_id] = 30
            refused += not request_id
        elif act < 0.9 and world.live:
            request_id = chance.choice(list(world.live))
            used = chance.randint(0, 20)
            assert await world.end(request_id, used)
            spent[request_id] = 10 + used
        elif act > 0.985:
            losses += 1
            await world.lose()
            if chance.random() < 0.5:
                world.quota = world.replica()
                assert await world.renew() == []  # as sessions begin
        if step % 5 == 0:
            assert await world.renew() == []
        last_minute = [request_id for at, request_id in admitted if at > clock.now() - 60]
        assert len(last_minute) <= 6
        assert sum(spent[request_id] for request_id in last_minute) <= 200
        assert len(world.live) <= 3
        assert sum(spent.values()) * USD_A_TOKEN <= day
    assert losses
    assert refused
    assert len(admitted) > 10
    clock.advance(29)
    assert await world.renew() == []
    clock.advance(1)
    assert (await world.used())[f"tenant:acme/{BUDGET}"] == sum(spent.values()) * USD_A_TOKEN


@pytest.mark.parametrize("key", KEYS)
async def test_a_lost_key_of_a_tenant_leaks_no_hold(redis_counters: RedisCounters, clock: FakeClock, key: str) -> None:
    day = 1_000 * USD_A_TOKEN
    world = World(redis_counters, clock, Limits(concurrent_requests=3, daily_budget_nano_usd=day))
    await world.end(await world.ask(), 10)
    running, gone = await world.ask(), await world.ask()
    del world.live[gone]  # its router has died
    await lose_keys(redis_counters, key)
    if key != "settled":
        assert await world.renew() == []
    assert not await world.ask()  # what it holds is being gathered
    assert await world.renew() == []
    clock.advance(29)
    assert await world.renew() == []
    clock.advance(1)
    assert await world.used() == {"tenant:acme/concurrent_requests": 1, f"tenant:acme/{BUDGET}": 50 * USD_A_TOKEN + 1}
    assert await world.end(running, 5)
    assert await world.used() == {"tenant:acme/concurrent_requests": 0, f"tenant:acme/{BUDGET}": 35 * USD_A_TOKEN}
    assert await world.ask()


@pytest.mark.parametrize("key", KEYS[:3])
async def test_a_tenant_of_which_a_key_is_left_is_not_new(
    redis_counters: RedisCounters, clock: FakeClock, key: str
) -> None:
    world = World(redis_counters, clock, Limits(requests_per_minute=1))
    assert await world.ask()
    await lose_keys(redis_counters, key)
    world.quota = world.replica()  # which has never heard of the tenant, nor has the ledger
    assert not await world.ask()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_whichever_keys_are_lost_nothing_stays_held_and_no_limit_is_passed(
    redis_counters: RedisCounters, clock: FakeClock, seed: int
) -> None:
    chance = random.Random(seed)
    day = 400 * USD_A_TOKEN
    limits = Limits(requests_per_minute=6, tokens_per_minute=200, concurrent_requests=3, daily_budget_nano_usd=day)
    world = World(redis_counters, clock, limits)
    admitted: list[tuple[float, str]] = []
    spent: dict[str, int] = {}
    losses = 0
    for step in range(250):
        clock.advance(chance.choice([0.0, 0.1, 1.0, 2.5]))
        act = chance.random()
        if act < 0.6:
            request_id = await world.ask(10, 20)
            if request_id:
                admitted.append((clock.now(), request_id))
                spent[request_id] = 30
        elif act < 0.9 and world.live:
            request_id = chance.choice(list(world.live))
            used = chance.randint(0, 20)
            assert await world.end(request_id, used)
            spent[request_id] = 10 + used
        elif act > 0.97:
            losses += 1
            await lose_keys(redis_counters, *chance.sample(KEYS, chance.randint(1, 4)))
            if chance.random() < 0.3:
                world.quota = world.replica()
                assert await world.renew() == []  # as sessions begin
        if step % 5 == 0:
            assert await world.renew() == []
        last_minute = [request_id for at, request_id in admitted if at > clock.now() - 60]
        assert len(last_minute) <= 6
        assert sum(spent[request_id] for request_id in last_minute) <= 200
        assert len(world.live) <= 3
        assert sum(spent.values()) * USD_A_TOKEN <= day
    assert losses
    world.live.clear()  # all routers die
    for _ in range(3):  # a lost key, a lease that lapses, and what the sweep then finds
        await world.used()
        clock.advance(31)
        await world.counters.sweep("acme", 100)
    assert (await world.used())["tenant:acme/concurrent_requests"] == 0
