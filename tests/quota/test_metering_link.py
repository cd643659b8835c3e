"""Following a ledger over a loopback connection, with the specification as the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from forebay.api.metering.v1 import metering_pb2 as pb
from forebay.api.metering.v1 import metering_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.limits import Usage, rows_of
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.reservations import Order, Router, Swept, Terms
from forebay.quota.metering_link import LOOK_BACK_S, RETRY_S, MeteringLink
from forebay.quota.prices import Prices
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.testing.clock import FakeClock


class Ledger(metering_pb2_grpc.MeteringServiceServicer):
    """Metering with a ledger of our own; `cut` ends the streams that are open."""

    def __init__(self) -> None:
        self.entries: list[pb.LedgerEntry] = []
        self.requests: list[pb.StreamUsageRequest] = []
        self.more = asyncio.Event()
        self.cut = self.away = False

    def add(self, request_id: str, tenant_id: str = "acme", **fields: Any) -> None:
        values = {"attempt": 1, "prompt_tokens": 10, "outcome": pb.OUTCOME_COMPLETED, **fields}
        event = pb.UsageEvent(request_id=request_id, tenant_id=tenant_id, **values)
        self.entries.append(pb.LedgerEntry(position=len(self.entries) + 1, event=event))
        self.more.set()

    async def StreamUsage(self, request: pb.StreamUsageRequest, context: Any) -> AsyncIterator[pb.StreamUsageResponse]:
        self.requests.append(request)
        at = int(request.cursor or "0")
        if at > len(self.entries):
            raise MeshError(Code.INVALID_ARGUMENT, "BAD_CURSOR", "of another ledger")
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "AWAY", "away")
        if not request.follow:
            chosen = [each for each in self.entries if each.event.request_id in request.filter.request_ids]
            yield pb.StreamUsageResponse(entries=chosen, cursor="whatever")
            return
        while not self.cut:
            self.more.clear()  # before the look, so that what comes meanwhile is not missed
            if at < len(self.entries):
                page, at = self.entries[at:], len(self.entries)
                yield pb.StreamUsageResponse(entries=page, cursor=str(at))
            else:
                await self.more.wait()
        self.cut = False
        raise MeshError(Code.UNAVAILABLE, "AWAY", "away")


class Counters(InMemoryCounters):
    """The twin, which tells when the cursor moves, and with an outage at will."""

    away = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.moved = asyncio.Event()

    async def keep_usage_cursor(self, cursor: str) -> None:
        self.moved.set()
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away")
        await super().keep_usage_cursor(cursor)

    async def move(self) -> None:
        await self.moved.wait()
        self.moved.clear()


@pytest.fixture
def counters(clock: FakeClock) -> Counters:
    return Counters(Terms(), lambda: int(clock.now() * 1000))


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def prices() -> Prices:
    return Prices(PriceTable([Price("default", "completion_tokens", 10**6)]))


@pytest.fixture
async def link(ledger: Ledger, counters: Counters, clock: FakeClock, prices: Prices) -> AsyncIterator[MeteringLink]:
    server = RpcServer("127.0.0.1:0")
    name = "forebay.api.metering.v1.MeteringService"
    server.add(metering_pb2_grpc.add_MeteringServiceServicer_to_server, ledger, name)
    await server.start()
    async with connect(server.address, caller="test") as channel:
        yield MeteringLink(channel, counters, clock, prices)
    await server.drain(0)


@pytest.fixture
async def follow(link: MeteringLink) -> AsyncIterator[Callable[[], None]]:
    """Begins to follow; what is in ledger and counters by then was there before quota started."""
    running: list[asyncio.Task[None]] = []
    yield lambda: running.append(asyncio.create_task(link.run()))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def hold(counters: Counters, name: str, tenant_id: str = "acme") -> None:
    tenant = TenantPolicy(tenant_id, "basic", ServiceClass.BRONZE, 500)
    order = Order(name * 32, Router("router-1", 1), 10, 50)
    await counters.reserve(tenant_id, order, rows_of(tenant, Usage(1, 10, 50)))


async def slept(clock: FakeClock) -> None:
    """Lets the link try again."""
    while not clock._sleepers:
        await asyncio.sleep(0.001)
    clock.advance(RETRY_S)


async def test_usage_reaches_the_reservations_of_every_tenant(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    await hold(counters, "a")
    await hold(counters, "b", "globex")
    ledger.add("a" * 32, completion_to=5)
    follow()
    await counters.move()
    (request,) = ledger.requests
    assert (request.cursor, request.follow) == ("", True)
    assert request.filter.finished_from.seconds == clock.now() - LOOK_BACK_S
    ledger.add("b" * 32, "globex", completion_to=7, outcome=pb.OUTCOME_LOST)
    await counters.move()
    assert await counters.usage_cursor() == "2"
    clock.advance(30)
    for tenant_id, after_expiry in (("acme", Swept(settled=1)), ("globex", Swept())):
        assert await counters.sweep(tenant_id, 10) == Swept(expired=1)
        assert await counters.sweep(tenant_id, 10) == after_expiry


@pytest.mark.parametrize(
    ("outcome", "final"),
    [
        (pb.OUTCOME_COMPLETED, True),
        (pb.OUTCOME_CANCELLED, True),
        (pb.OUTCOME_FAILED, True),
        (pb.OUTCOME_BUDGET_STOPPED, True),
        (pb.OUTCOME_HANDED_OVER, False),
        (pb.OUTCOME_LOST, False),
    ],
)
async def test_an_outcome_says_whether_the_request_has_ended(
    follow: Callable[[], None],
    ledger: Ledger,
    counters: Counters,
    clock: FakeClock,
    outcome: pb.Outcome.ValueType,
    final: bool,
) -> None:
    await hold(counters, "a")
    ledger.add("a" * 32, outcome=outcome)
    follow()
    await counters.move()
    clock.advance(30)
    await counters.sweep("acme", 10)
    assert await counters.sweep("acme", 10) == Swept(settled=int(final))


async def test_it_goes_on_from_where_it_was(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    ledger.add("a" * 32)
    follow()
    await counters.move()
    ledger.cut = True
    ledger.more.set()
    await slept(clock)
    ledger.add("b" * 32)
    await counters.move()
    assert [request.cursor for request in ledger.requests] == ["", "1"]
    assert await counters.usage_cursor() == "2"


async def test_nothing_is_observed_before_prices_are_known(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock, prices: Prices
) -> None:
    await hold(counters, "a")
    ledger.add("a" * 32, completion_to=5)
    table, prices.table = prices.table, None
    follow()
    while not clock._sleepers and not counters.moved.is_set():
        await asyncio.sleep(0.001)
    prices.table = table
    clock.advance(RETRY_S)
    await counters.move()
    clock.advance(30)
    while (await counters.sweep("acme", 10)).total:
        pass
    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(daily_budget_nano_usd=100))
    assert [state.used for state in await counters.peek("acme", rows_of(tenant, Usage(0, 0, 0)))] == [5]


async def test_what_was_observed_without_its_place_being_kept_is_observed_again(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    await hold(counters, "a")
    ledger.add("a" * 32, completion_to=5)
    counters.away = True
    follow()
    await counters.move()
    counters.away = False
    await slept(clock)
    await counters.move()
    assert [request.cursor for request in ledger.requests] == ["", ""]
    assert await counters.usage_cursor() == "1"


async def test_another_ledger_is_read_from_its_beginning(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    await counters.keep_usage_cursor("17")
    counters.moved.clear()
    ledger.add("a" * 32)
    follow()
    await counters.move()  # to the beginning
    await slept(clock)
    await counters.move()
    assert [request.cursor for request in ledger.requests] == ["17", ""]
    assert await counters.usage_cursor() == "1"


async def test_what_came_by_before_its_reservation_was_there_is_looked_up(
    link: MeteringLink, ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    for name in "ab":
        ledger.add(name * 32)
        await hold(counters, name)
    await link.look_up("a" * 32)
    clock.advance(30)
    assert await counters.sweep("acme", 10) == Swept(expired=2)
    assert await counters.sweep("acme", 10) == Swept(settled=1)
    assert await counters.usage_cursor() == "", "the place in the ledger is that of who follows it"


async def test_who_looks_up_hears_that_metering_is_away(link: MeteringLink, ledger: Ledger) -> None:
    ledger.away = True
    with pytest.raises(MeshError) as caught:
        await link.look_up("a" * 32)
    assert caught.value.code is Code.UNAVAILABLE
