"""The contract over a real loopback connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.clock import SystemClock
from forebay.errors import Code
from forebay.lifecycle import background
from forebay.metering import record_session
from forebay.metering.config import MeteringConfig
from forebay.metering.domain.event import Source, UsageEvent
from forebay.metering.domain.prices import Item, Price, PriceTable
from forebay.metering.ledger import Ledger
from forebay.metering.main import SERVICE, build
from forebay.metering.messages import from_pb_event, to_pb_event
from forebay.metering.price_book import PriceBook
from forebay.metering.service import Metering
from forebay.metering.servicer import MeteringServicer
from forebay.metering.sqlite_ledger import open_ledger
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer

from .doubles import GatedLedger, Reporter, limit_pages, refusal, settle
from .samples import TABLE, request_id, usage_event

WINDOW = 10

L = TypeVar("L", bound=Ledger)


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Any]:
    """The service as it is built for production, on a ledger of its own."""
    config = MeteringConfig(id="metering-1", ledger_path=tmp_path / "ledger.db")
    async with AsyncExitStack() as stack:
        server = await build(config, stack)
        await server.start()
        stack.push_async_callback(server.drain, 0)
        channel = await stack.enter_async_context(connect(server.address, caller="test"))
        yield metering_pb2_grpc.MeteringServiceStub(channel)


class Bench(Generic[L]):
    """The service on a ledger that a test has its hands on."""

    def __init__(self, ledger: L) -> None:
        self.ledger = ledger
        self.prices = PriceBook(TABLE, 1)
        self.metering = Metering(self.ledger, self.prices, SystemClock(), hold_s=60, max_waiting=100)
        peer = common_pb2.Peer(id="metering-1", incarnation=1)
        self.server = RpcServer("127.0.0.1:0")
        servicer = MeteringServicer(peer, self.metering, self.prices, SystemClock(), WINDOW)
        self.server.add(metering_pb2_grpc.add_MeteringServiceServicer_to_server, servicer, SERVICE)
        self.stub: Any = None


@asynccontextmanager
async def serving(ledger: L) -> AsyncIterator[Bench[L]]:
    async with AsyncExitStack() as stack:
        bench = Bench(ledger)
        await stack.enter_async_context(background(bench.metering.commit_reports(), "commit-reports"))
        await bench.server.start()
        stack.push_async_callback(bench.server.drain, 0)
        channel = await stack.enter_async_context(connect(bench.server.address, caller="test"))
        bench.stub = metering_pb2_grpc.MeteringServiceStub(channel)
        yield bench


@pytest.fixture
async def gated() -> AsyncIterator[Bench[GatedLedger]]:
    async with serving(GatedLedger()) as bench:
        yield bench


async def record(stub: Any, *events: UsageEvent) -> Reporter:
    reporter = Reporter(stub)
    await reporter.hello()
    await reporter.send(*events)
    await reporter.close()
    return reporter


async def ledger_of(stub: Any, **request: Any) -> list[metering_pb2.LedgerEntry]:
    pages = [page async for page in stub.StreamUsage(metering_pb2.StreamUsageRequest(**request))]
    return [entry for page in pages for entry in page.entries]


@pytest.mark.parametrize(
    "event",
    [
        usage_event(),
        usage_event(source=Source.ROUTER, worker_id="", worker_incarnation=0, started_at_ns=None, labels={}),
    ],
)
def test_an_event_crosses_the_wire_unchanged(event: UsageEvent) -> None:
    assert from_pb_event(to_pb_event(event)) == event


async def test_it_is_healthy_once_built(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = await build(MeteringConfig(id="metering-1", ledger_path=tmp_path / "ledger.db"), stack)
        await server.start()
        stack.push_async_callback(server.drain, 0)
        channel = await stack.enter_async_context(connect(server.address, caller="test"))
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_recorded_event_shows_with_its_price(stub: Any) -> None:
    reporter = await record(stub, usage_event(priced_by_plan=True))
    assert (reporter.acknowledged, reporter.rejections) == (1, {})
    (entry,) = await ledger_of(stub)
    assert (entry.position, entry.corrects, entry.event) == (1, 0, to_pb_event(usage_event(priced_by_plan=True)))
    assert (entry.billed_prompt_tokens, entry.billed_completion_tokens) == (100, 20)
    assert entry.cost_nano_usd == sum(line.amount_nano_usd for line in entry.lines) == 120 * 2_000
    assert entry.lines[0] == metering_pb2.PriceLine(
        item="prompt_tokens",
        quantity=60,
        nano_usd_per_million=2_000_000_000,
        amount_nano_usd=120_000,
        source="plan:basic",
    )
    assert len(entry.chain_hash) == 32
    assert entry.recorded_at.seconds > 0


async def test_the_welcome_says_how_much_may_be_unacknowledged(gated: Bench[GatedLedger]) -> None:
    welcome = await Reporter(gated.stub).hello()
    assert (welcome.metering.id, welcome.max_unacknowledged) == ("metering-1", WINDOW)


async def test_what_can_never_be_recorded_is_turned_away_and_the_rest_recorded(stub: Any) -> None:
    reporter = Reporter(stub)
    await reporter.hello()
    no_outcome = to_pb_event(usage_event(4))
    no_outcome.outcome = metering_pb2.OUTCOME_UNSPECIFIED
    await reporter.send(usage_event(1), usage_event(2, tenant_id="no such name"), usage_event(3))
    await reporter.send_raw(
        metering_pb2.RecordRequest(events=[metering_pb2.RecordRequest.NumberedEvent(seq=4, event=no_outcome)])
    )
    await reporter.close()
    assert (reporter.acknowledged, reporter.rejections) == (4, {2: "BAD_EVENT", 4: "BAD_EVENT"})
    assert [entry.event.request_id for entry in await ledger_of(stub)] == [request_id(1), request_id(3)]


async def test_another_tenants_claim_on_a_request_is_turned_away(stub: Any) -> None:
    reporter = await record(stub, usage_event(1), usage_event(1, attempt=2, tenant_id="globex"))
    assert reporter.rejections == {2: "TENANT_CONFLICT"}


async def test_a_session_must_begin_with_hello_and_count_by_one(gated: Bench[GatedLedger]) -> None:
    stranger = Reporter(gated.stub)
    await stranger.send(usage_event())
    assert (await stranger.error()).reason == "BAD_HELLO"
    skipping = Reporter(gated.stub)
    await skipping.hello()
    await skipping.send_raw(
        metering_pb2.RecordRequest(
            events=[metering_pb2.RecordRequest.NumberedEvent(seq=2, event=to_pb_event(usage_event()))]
        )
    )
    assert (await skipping.error()).reason == "BAD_SEQUENCE"


async def test_too_much_unacknowledged_ends_the_session(gated: Bench[GatedLedger]) -> None:
    gated.ledger.gate.clear()
    reporter = Reporter(gated.stub)
    await reporter.hello()
    await reporter.send(*(usage_event(n) for n in range(WINDOW)))
    await reporter.send(usage_event(WINDOW))
    error = await reporter.error()
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_UNACKNOWLEDGED")


async def test_nothing_is_acknowledged_before_its_commit(gated: Bench[GatedLedger]) -> None:
    gated.ledger.gate.clear()
    reporter = Reporter(gated.stub)
    await reporter.hello()
    await reporter.send(usage_event(1), usage_event(2))
    heard = asyncio.ensure_future(reporter.all_acknowledged())
    await settle()
    assert not heard.done()
    gated.ledger.gate.set()
    await heard
    assert await gated.ledger.head() == 2


async def test_a_reporter_cut_off_sends_again_without_duplicates(gated: Bench[GatedLedger]) -> None:
    events = [usage_event(n) for n in range(5)]
    gated.ledger.gate.clear()
    cut_off = Reporter(gated.stub)
    await cut_off.hello()
    await cut_off.send(*events)
    await gated.ledger.reached.wait()
    cut_off.cancel()
    gated.ledger.gate.set()
    reporter = await record(gated.stub, *events, usage_event(9))
    assert reporter.acknowledged == 6
    assert sorted(entry.event.request_id for entry in await ledger_of(gated.stub)) == [*map(request_id, (*range(5), 9))]


async def test_a_broken_ledger_ends_sessions_and_loses_nothing(gated: Bench[GatedLedger]) -> None:
    reporter = Reporter(gated.stub)
    await reporter.hello()
    await reporter.send(usage_event(1))
    await reporter.all_acknowledged()
    gated.ledger.broken = True
    await reporter.send(usage_event(2))
    error = await reporter.error()
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert error.retry_after is not None
    assert reporter.acknowledged == 1
    gated.ledger.broken = False
    assert (await record(gated.stub, usage_event(2))).acknowledged == 1
    assert len(await ledger_of(gated.stub)) == 2


async def test_a_full_disk_ends_sessions_loses_nothing_and_recovers(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db") as ledger, serving(ledger) as full:

        async def recorded() -> list[str]:
            return [entry.event.request_id for entry in await ledger_of(full.stub)]

        limit_pages(ledger, 30)
        reporter = Reporter(full.stub)
        await reporter.hello()

        async def fill() -> None:
            for number in range(100):
                await reporter.send(usage_event(number))
                await reporter.all_acknowledged()

        error = await refusal(fill())
        assert (error.code, error.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        safe = reporter.acknowledged
        assert safe
        assert await recorded() == [*map(request_id, range(safe))]
        limit_pages(ledger, 1_000)
        await record(full.stub, usage_event(safe))
        assert await recorded() == [*map(request_id, range(safe + 1))]


async def test_recording_is_a_span_of_the_request(gated: Bench[GatedLedger], monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[Any, ...]] = []
    monkeypatch.setattr(record_session, "record_span", lambda *arguments: spans.append(arguments))
    reporter = Reporter(gated.stub)
    await reporter.hello()
    await reporter.send(usage_event(), traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
    await reporter.close()
    ((name, parent, start_s, end_s, attributes),) = spans
    (span,) = parent.values()
    assert (name, format(span.get_span_context().span_id, "016x")) == ("metering.record", "2" * 16)
    assert start_s <= end_s
    assert attributes["forebay.request_id"] == request_id(1)


@pytest.mark.slow
async def test_followers_miss_nothing_and_see_nothing_twice(stub: Any) -> None:
    """Two reporters append while one reader follows and, every few messages, goes away and resumes from its cursor."""
    total = 400

    async def report(first: int) -> None:
        reporter = Reporter(stub)
        await reporter.hello()
        for number in range(first, total, 2):
            await reporter.send(usage_event(number))
            if number % 20 < 2:
                await reporter.all_acknowledged()
        await reporter.close()

    async def read() -> Sequence[metering_pb2.LedgerEntry]:
        seen: list[metering_pb2.LedgerEntry] = []
        cursor = ""
        while len(seen) < total:
            call = stub.StreamUsage(metering_pb2.StreamUsageRequest(cursor=cursor, follow=True))
            for _ in range(3):
                page = await call.read()
                seen += page.entries
                cursor = page.cursor
                if len(seen) >= total:
                    break
            call.cancel()
        return seen

    seen, *_ = await asyncio.gather(read(), report(0), report(1))
    assert [entry.position for entry in seen] == list(range(1, total + 1))
    assert {entry.event.request_id for entry in seen} == {request_id(number) for number in range(total)}


async def test_now_is_the_end_of_the_ledger(stub: Any) -> None:
    await record(stub, usage_event(1))
    call = stub.StreamUsage(metering_pb2.StreamUsageRequest(cursor="now", follow=True))
    first = await call.read()
    assert (list(first.entries), first.cursor) == ([], "v1:1")
    await record(stub, usage_event(2))
    assert [entry.position for entry in (await call.read()).entries] == [2]
    call.cancel()


async def test_a_tenants_filter_and_a_cursor_hold_together(stub: Any) -> None:
    await record(stub, *(usage_event(n, tenant_id=("acme", "globex")[n % 2]) for n in range(4)))
    mine = metering_pb2.UsageFilter(tenant_ids=["globex"])
    assert [entry.position for entry in await ledger_of(stub, filter=mine)] == [2, 4]
    assert [entry.position for entry in await ledger_of(stub, filter=mine, cursor="v1:2")] == [4]


@pytest.mark.parametrize("cursor", ["v1:2", "v2:0", "v1:-1", "v1:007", "1", "NOW", "v1:" + "9" * 30])
async def test_a_cursor_of_no_ledger_is_refused(gated: Bench[GatedLedger], cursor: str) -> None:
    await record(gated.stub, usage_event())
    error = await refusal(gated.stub.StreamUsage(metering_pb2.StreamUsageRequest(cursor=cursor)).read())
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_CURSOR")


async def test_sums_carry_their_groups(stub: Any) -> None:
    await record(stub, usage_event(1), usage_event(2, model="other", gpu_time_ns=1_500_000_000))
    request = metering_pb2.SumUsageRequest(
        group_by=[metering_pb2.USAGE_DIMENSION_MODEL, metering_pb2.USAGE_DIMENSION_OUTCOME]
    )
    other, smollm2 = (await stub.SumUsage(request)).totals
    assert (list(other.group), list(smollm2.group)) == (["other", "completed"], ["smollm2", "completed"])
    assert (other.gpu_time.seconds, other.gpu_time.nanos) == (1, 500_000_000)
    assert (smollm2.requests, smollm2.attempts) == (1, 1)
    assert (smollm2.prompt_tokens, smollm2.cached_tokens, smollm2.completion_tokens) == (100, 40, 20)
    (total,) = (await stub.SumUsage(metering_pb2.SumUsageRequest())).totals
    assert total.cost_nano_usd == other.cost_nano_usd + smollm2.cost_nano_usd


@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [
        ({"group_by": [0]}, "BAD_DIMENSIONS"),
        ({"group_by": [1, 1]}, "BAD_DIMENSIONS"),
        ({"group_by": [99]}, "BAD_DIMENSIONS"),
        ({"filter": metering_pb2.UsageFilter(outcomes=[0])}, "BAD_FILTER"),  # type: ignore[list-item]
        ({"filter": metering_pb2.UsageFilter(request_ids=[str(n) for n in range(1_001)])}, "BAD_FILTER"),
        ({"filter": metering_pb2.UsageFilter(except_request_ids=["i"] * 7 + ["m" * 257])}, "BAD_FILTER"),
        ({"filter": metering_pb2.UsageFilter(models=["m" * 257])}, "BAD_FILTER"),
        ({"filter": metering_pb2.UsageFilter(finished_from={"seconds": 10**12})}, "BAD_FILTER"),
    ],
)
async def test_a_sum_out_of_bounds_is_refused(
    gated: Bench[GatedLedger], request_fields: dict[str, Any], reason: str
) -> None:
    error = await refusal(gated.stub.SumUsage(metering_pb2.SumUsageRequest(**request_fields)))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, reason)


async def test_prices_are_shown_and_so_is_their_change(gated: Bench[GatedLedger]) -> None:
    call = gated.stub.WatchPrices(metering_pb2.WatchPricesRequest())
    first = await call.read()
    assert (first.version, len(first.prices)) == (1, len(Item))
    gated.prices.replace(
        PriceTable([*TABLE.prices, Price("tenant:acme", Item.REQUESTS, 5, model="smollm2")]), version=9
    )
    second = await call.read()
    assert second.version == 9
    (mine,) = (price for price in second.prices if price.subject == "tenant:acme")
    assert (mine.item, mine.nano_usd_per_million, mine.model) == ("requests", 5, "smollm2")
    call.cancel()
