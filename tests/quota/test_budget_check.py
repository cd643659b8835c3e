"""Budgets against the ledger: where they agree, what is allowed for, and who is told of a difference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2
from forebay.metering.config import MeteringConfig
from forebay.metering.main import build as build_metering
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.budget_check import BudgetCheck
from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.comparison import Comparison
from forebay.quota.domain.limits import Row, Usage
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.rebuild import CountersUnknownError, Totals
from forebay.quota.domain.reservations import Lease, Order, Router, Terms
from forebay.quota.messages import from_pb_price
from forebay.quota.metering_sums import MeteringSums
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.service import Quota
from forebay.quota.servicer import QuotaServicer
from forebay.quota.usage_sums import Attempt, InMemorySums, UsageSums, Used
from forebay.rpc.client import connect
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 1)
PRICES = PriceTable([Price("default", item, 3_333_333) for item in ("prompt_tokens", "completion_tokens")])
DAY, BUDGET = "tokens_per_day", "daily_budget_nano_usd"


class World:
    """One tenant and the job, over a store and a ledger's sums."""

    def __init__(self, store: CounterStore, clock: FakeClock, sums: UsageSums, prices: PriceTable = PRICES) -> None:
        limits = Limits(tokens_per_day=10_000, daily_budget_nano_usd=10**15, monthly_budget_nano_usd=10**15)
        tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=limits)
        self.clock = clock
        self.feed = feed = PolicyFeed(Policies({"acme": tenant}, {}, {}), clock)
        self.store = RebuildingCounters(store, feed, sums, clock.now)
        self.quota = Quota(feed, self.store, Prices(prices), clock.now)
        self.check = BudgetCheck(feed, self.store, sums, clock)
        self.count = 0

    async def ask(self) -> str:
        self.count += 1
        request_id = f"{self.count:032x}"
        await self.quota.reserve("acme", Order(request_id, ROUTER, 10, 40), model="m")
        return request_id

    async def settle(self, request_id: str, completion: int = 7) -> None:
        assert await self.quota.settle(Lease("acme", request_id), Usage(1, 10, completion), "m")

    async def minute(self) -> Comparison:
        """Has the job compare, once a minute later; returns what is known of the day."""
        self.clock.advance(60)
        await self.check.compare()
        return self.check.comparisons["acme"][DAY]


def row(world: World, request_id: str, completion: int = 7) -> Attempt:
    """What the ledger has of a request; its prices are rounded line by line."""
    used = Used(1, 10 + completion, 33 + round(completion * 3.333333))
    return Attempt(request_id, "acme", used, int(world.clock.now() * 1000))


async def test_what_has_ended_agrees_and_what_runs_is_in_neither(bare_store: CounterStore, clock: FakeClock) -> None:
    ledger = InMemorySums()
    world = World(bare_store, clock, ledger)
    ended, running, later = [await world.ask() for _ in range(3)]
    ledger.attempts += [row(world, ended), row(world, running)]  # an attempt, of which another one goes on
    await world.settle(ended)
    await world.check.compare()
    assert world.check.comparisons == {}
    clock.advance(1)
    ledger.attempts.append(row(world, later))
    await world.settle(later)
    newest = await world.ask()
    ledger.attempts.append(row(world, newest))
    await world.settle(newest)
    as_of_ms = int((clock.now() - 1) * 1000)
    assert await world.minute() == Comparison(as_of_ms, 17, 17, 0)
    assert {each.difference for each in world.check.comparisons["acme"].values()} == {0}
    assert (await world.minute()).counted == 3 * 17


async def test_a_difference_is_told_until_it_is_gone(bare_store: CounterStore, clock: FakeClock) -> None:
    ledger = InMemorySums()
    world = World(bare_store, clock, ledger)
    missing = await world.ask()
    late = row(world, missing)
    await world.settle(missing)
    await world.check.compare()
    assert (await world.minute()).difference == 17
    labels = {"limit": DAY}
    assert REGISTRY.get_sample_value("forebay_quota_budgets_differing", labels) == 1
    assert REGISTRY.get_sample_value("forebay_quota_budget_difference", labels) == 17
    servicer = QuotaServicer(world.quota, clock, 30.0, world.check)
    answer = await servicer.Peek(quota_pb2.PeekRequest(tenant_id="acme"), None)
    (shown,) = (state.comparison for state in answer.limits if state.limit == DAY)
    assert (shown.counted, shown.recorded, shown.difference) == (17, 0, 17)
    ledger.attempts.append(late)
    assert (await world.minute()).difference == 0
    assert REGISTRY.get_sample_value("forebay_quota_budgets_differing", labels) == 0
    ledger.attempts.append(row(world, "f" * 32))  # that no router settled, long after the day began
    await world.minute()
    assert (await world.minute()).difference == -17
    assert world.check.comparisons["acme"][BUDGET].difference < 0


async def test_what_ran_across_midnight_is_allowed_for(bare_store: CounterStore, clock: FakeClock) -> None:
    ledger = InMemorySums()
    world = World(bare_store, clock, ledger)
    across = await world.ask()
    clock.advance(86_400 - clock.now() % 86_400 + 5)
    ledger.attempts.append(row(world, across))
    await world.settle(across)
    today = await world.ask()
    ledger.attempts.append(row(world, today))
    await world.settle(today)
    await world.check.compare()
    found = await world.minute()
    assert (found.counted, found.recorded, found.difference) == (17, 34, 0)
    assert world.check.comparisons["acme"]["monthly_budget_nano_usd"].difference == 0


class Unknown(InMemoryCounters):
    """The twin, which knows nothing of one tenant."""

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        if tenant_id == "aardvark":
            raise CountersUnknownError(tenant_id)
        return await super().totals(tenant_id, rows)


async def test_a_tenant_that_cannot_be_rebuilt_keeps_no_other_from_being_compared(clock: FakeClock) -> None:
    store = Unknown(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    world = World(store, clock, InMemorySums())
    acme = world.feed.policies.tenants["acme"]
    world.feed.publish(Policies({"aardvark": replace(acme, tenant_id="aardvark"), "acme": acme}, {}, {}))
    await world.settle(await world.ask())
    await world.check.compare()
    assert (await world.minute()).counted == 17


@pytest.fixture
async def metering(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with AsyncExitStack() as stack:
        server = await build_metering(MeteringConfig(id="metering-1", ledger_path=tmp_path / "ledger.sqlite"), stack)
        await server.start()
        stack.push_async_callback(server.drain, 0)
        yield await stack.enter_async_context(connect(server.address, caller="test"))


async def record(stub: Any, world: World, *request_ids: str) -> None:
    """Brings events as a worker does."""
    call = stub.Record()
    await call.write(metering_pb2.RecordRequest(hello={"reporter": common_pb2.Peer(id="worker-1", incarnation=1)}))
    for seq, request_id in enumerate(request_ids, start=1):
        event = metering_pb2.UsageEvent(
            request_id=request_id,
            attempt=1,
            source=metering_pb2.EVENT_SOURCE_WORKER,
            tenant_id="acme",
            key_id="k",
            model="m",
            worker=common_pb2.Peer(id="worker-1", incarnation=1),
            prompt_tokens=10,
            completion_to=7,
            outcome=metering_pb2.OUTCOME_COMPLETED,
        )
        event.finished_at.FromMilliseconds(int(world.clock.now() * 1000))
        await call.write(metering_pb2.RecordRequest(events=[{"seq": seq, "event": event}]))
    while (await call.read()).acknowledged_seq < len(request_ids):
        pass
    call.cancel()


async def test_the_real_ledger_agrees_to_the_nano_dollar_and_rebuilds_what_is_lost(
    redis_counters: Any, metering: grpc.aio.Channel, clock: FakeClock
) -> None:
    stub: Any = metering_pb2_grpc.MeteringServiceStub(metering)
    watch = stub.WatchPrices(metering_pb2.WatchPricesRequest())
    prices = PriceTable(map(from_pb_price, (await watch.read()).prices))
    watch.cancel()
    world = World(redis_counters, clock, MeteringSums(metering), prices)
    requests = [await world.ask() for _ in range(4)]
    await record(stub, world, *requests[:3])
    for request_id in requests[:2]:
        await world.settle(request_id)
    await world.check.compare()
    assert await world.minute() == Comparison(int((clock.now() - 60) * 1000), 34, 34, 0)
    money = world.check.comparisons["acme"][BUDGET]
    assert (money.counted, money.difference) == (money.recorded, 0)
    assert money.counted > 0

    await redis_counters._redis.delete("forebay:{acme}:counters")
    await world.quota.peek("acme")
    clock.advance(30)
    used = {state.limit: state.used for state in await world.quota.peek("acme")}
    assert used[DAY] == 3 * 17  # the third was not brought by its router, and has ended
    assert used[BUDGET] == 3 * money.counted // 2
