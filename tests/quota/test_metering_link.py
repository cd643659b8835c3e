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
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Order, Router, Swept, Terms
from forebay.quota.metering_link import LOOK_BACK_S, RETRY_S, MeteringLink
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
        self.post(request_id, tenant_id, **{"prompt": 10, **fields})

    def post(
        self,
        request_id: str,
        tenant_id: str = "acme",
        *,
        prompt: int = 0,
        completion: int = 0,
        corrects: int = 0,
        **fields: Any,
    ) -> None:
        """Adds a row that bills so many tokens, at one nano-USD each."""
        event = pb.UsageEvent(
            request_id=request_id, tenant_id=tenant_id, **{"attempt": 1, "outcome": pb.OUTCOME_COMPLETED, **fields}
        )
        entry = pb.LedgerEntry(
            position=len(self.entries) + 1,
            event=event,
            corrects=corrects,
            billed_prompt_tokens=prompt,
            billed_completion_tokens=completion,
            cost_nano_usd=prompt + completion,
        )
        self.entries.append(entry)
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
async def link(ledger: Ledger, counters: Counters, clock: FakeClock) -> AsyncIterator[MeteringLink]:
    server = RpcServer("127.0.0.1:0")
    name = "forebay.api.metering.v1.MeteringService"
    server.add(metering_pb2_grpc.add_MeteringServiceServicer_to_server, ledger, name)
    await server.start()
    async with connect(server.address, caller="test") as channel:
        yield MeteringLink(channel, counters, clock)
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
    ledger.add("a" * 32, completion=5)
    follow()
    await counters.move()
    (request,) = ledger.requests
    assert (request.cursor, request.follow) == ("", True)
    assert request.filter.finished_from.seconds == clock.now() - LOOK_BACK_S
    ledger.add("b" * 32, "globex", completion=7, outcome=pb.OUTCOME_LOST)
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


BUDGETED = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(daily_budget_nano_usd=10_000))


async def charged(counters: Counters, clock: FakeClock) -> int:
    """Returns the nano-USD of the day."""
    (state,) = await counters.peek("acme", rows_of(BUDGETED, Usage(0, 0, 0), clock.now()))
    return state.used


async def test_a_budget_comes_to_the_sum_of_the_requests_rows(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    """Its first worker hung, another one continued it, the router settled, and then the first went on and said more."""
    order = Order("a" * 32, Router("router-1", 1), 10, 50)
    await counters.reserve("acme", order, rows_of(BUDGETED, Usage(1, 10, 50, cost_nano_usd=60), clock.now()))
    follow()
    ledger.post("a" * 32, attempt=2, prompt=10, completion=5, completion_from=4)
    await counters.move()
    await counters.settle("acme", "a" * 32, amounts_of(Usage(1, 10, 9, cost_nano_usd=19)))
    assert await charged(counters, clock) == 19  # the first attempt's row is still to come
    ledger.post("a" * 32, prompt=10, completion=4, outcome=pb.OUTCOME_LOST)
    ledger.post("a" * 32, attempt=2, prompt=-10, corrects=1)
    await counters.move()
    assert await charged(counters, clock) == 19
    ledger.entries[-1].cost_nano_usd -= 3  # its cached tokens are cheaper
    ledger.post("a" * 32, completion=0, corrects=2)
    await counters.move()
    assert await charged(counters, clock) == 16
    assert await counters.observe("acme", []) == 0


async def test_a_client_that_left_a_worker_that_hung_is_charged_what_the_worker_says_late(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    order = Order("a" * 32, Router("router-1", 1), 10, 50)
    await counters.reserve("acme", order, rows_of(BUDGETED, Usage(1, 10, 50, cost_nano_usd=60), clock.now()))
    await counters.settle("acme", "a" * 32, amounts_of(Usage(1, 10, 5, cost_nano_usd=15)))
    follow()
    ledger.post("a" * 32, prompt=10, completion=5, outcome=pb.OUTCOME_CANCELLED)
    await counters.move()
    ledger.post("a" * 32, completion=2, corrects=1, outcome=pb.OUTCOME_CANCELLED)
    await counters.move()
    assert await charged(counters, clock) == 17


async def test_what_was_observed_without_its_place_being_kept_is_observed_again(
    follow: Callable[[], None], ledger: Ledger, counters: Counters, clock: FakeClock
) -> None:
    await hold(counters, "a")
    ledger.add("a" * 32, completion=5)
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
