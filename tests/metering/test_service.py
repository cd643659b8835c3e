"""Group commit, held reports and followers, on the in-memory ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from forebay.errors import Code, MeshError
from forebay.metering.domain.event import Source, UsageEvent
from forebay.metering.domain.posting import Disposition
from forebay.metering.domain.prices import PriceTable
from forebay.metering.domain.selection import UsageFilter
from forebay.metering.ledger import Page, ledger_unavailable
from forebay.metering.price_book import PriceBook
from forebay.metering.service import CONFIRM_EVERY_S, IDLE_S, PAGE, PROBE_AGAIN_S, Metering
from forebay.tasks import background
from forebay.testing.clock import FakeClock

from .doubles import GatedLedger, settle
from .samples import TABLE, usage_event

EVERYTHING = UsageFilter()


class Bench:
    """A service at work on a gated ledger."""

    def __init__(
        self, clock: FakeClock, ledger: GatedLedger | None = None, hold_s: float = 60.0, max_waiting: int = 10_000
    ) -> None:
        self.ledger = ledger or GatedLedger()
        self.clock = clock
        self.metering = Metering(self.ledger, PriceBook(TABLE, 1), clock, hold_s=hold_s, max_waiting=max_waiting)

    async def record(self, *reports: UsageEvent) -> list[Disposition]:
        results: list[asyncio.Future[Disposition]] = []
        for report in reports:
            result: asyncio.Future[Disposition] = asyncio.get_running_loop().create_future()
            results.append(result)

            def done(got: Disposition | MeshError, result: asyncio.Future[Disposition] = result) -> None:
                if isinstance(got, MeshError):
                    result.set_exception(got)
                else:
                    result.set_result(got)

            self.metering.submit(report, done)
        return await asyncio.gather(*results)


@asynccontextmanager
async def working(bench: Bench) -> AsyncIterator[Bench]:
    tasks = [asyncio.create_task(bench.metering.commit_reports()), asyncio.create_task(bench.metering.confirm_held())]
    try:
        yield bench
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def bench(clock: FakeClock) -> AsyncIterator[Bench]:
    async with working(Bench(clock)) as bench:
        yield bench


def positions(page: Page) -> list[int]:
    return [entry.row.position for entry in page.entries]


async def test_what_gathers_during_a_commit_is_the_next_commit(bench: Bench) -> None:
    bench.ledger.gate.clear()
    first = asyncio.create_task(bench.record(usage_event(0)))
    await settle()
    rest = [asyncio.create_task(bench.record(usage_event(n))) for n in range(1, 6)]
    await settle()
    bench.ledger.gate.set()
    await asyncio.gather(first, *rest)
    assert bench.ledger.commits == [1, 5]


async def test_a_failed_commit_fails_its_reports_and_no_others(bench: Bench) -> None:
    await bench.record(usage_event(1))
    bench.ledger.broken = True
    with pytest.raises(MeshError) as caught:
        await bench.record(usage_event(2))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    bench.ledger.broken = False
    assert await bench.record(usage_event(1), usage_event(2)) == [Disposition.UNCHANGED, Disposition.RECORDED]


async def test_no_more_wait_than_allowed(clock: FakeClock) -> None:
    bench = Bench(clock, max_waiting=2)
    for number in range(2):
        bench.metering.submit(usage_event(number), lambda result: None)
    with pytest.raises(MeshError) as caught:
        bench.metering.submit(usage_event(3), lambda result: None)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "LEDGER_BUSY")


async def test_a_routers_report_enters_after_its_wait(bench: Bench) -> None:
    assert await bench.record(usage_event(source=Source.ROUTER)) == [Disposition.HELD]
    for _ in range(int(60 / CONFIRM_EVERY_S) - 1):
        bench.clock.advance(CONFIRM_EVERY_S)
        await settle()
    assert await bench.metering.head() == 0
    bench.clock.advance(CONFIRM_EVERY_S)
    await settle()
    assert await bench.metering.head() == 1


async def test_a_short_wait_is_kept_too(clock: FakeClock) -> None:
    async with working(Bench(clock, hold_s=2)) as bench:
        await settle()
        clock.advance(1)
        await bench.record(usage_event(source=Source.ROUTER))
        for head in (0, 0, 0, 1):
            assert await bench.metering.head() == head
            clock.advance(1)
            await settle()


async def test_a_restart_gives_held_reports_their_whole_wait_again(clock: FakeClock) -> None:
    ledger = GatedLedger()
    async with working(Bench(clock, ledger)) as bench:
        await bench.record(usage_event(source=Source.ROUTER))
    clock.advance(600)
    async with working(Bench(clock, ledger)) as bench:
        for seconds, head in ((0, 0), (59, 0), (1, 1)):
            clock.advance(seconds)
            await settle()
            assert await bench.metering.head() == head


async def test_a_reader_that_does_not_follow_gets_all_and_ends(bench: Bench) -> None:
    assert [positions(page) async for page in bench.metering.stream(0, EVERYTHING, follow=False)] == [[]]
    await bench.record(*(usage_event(n) for n in range(PAGE + 1)))
    pages = [page async for page in bench.metering.stream(0, EVERYTHING, follow=False)]
    assert [len(page.entries) for page in pages] == [PAGE, 1]
    assert [position for page in pages for position in positions(page)] == list(range(1, PAGE + 2))


async def test_a_follower_wakes_with_each_commit(bench: Bench) -> None:
    stream = bench.metering.stream(0, EVERYTHING, follow=True)
    assert positions(await anext(stream)) == []
    for number in range(1, 4):
        coming = asyncio.ensure_future(anext(stream))
        await settle()
        await bench.record(usage_event(number))
        assert positions(await coming) == [number]


async def test_an_idle_follower_hears_how_far_the_ledger_is(bench: Bench) -> None:
    stream = bench.metering.stream(0, UsageFilter(models=frozenset({"none"})), follow=True)
    await anext(stream)
    coming = asyncio.ensure_future(anext(stream))
    await settle()
    bench.clock.advance(IDLE_S - 1)
    await bench.record(usage_event(1), usage_event(2))
    await settle()
    assert not coming.done()
    bench.clock.advance(1)
    page = await coming
    assert (page.entries, page.position) == ((), 2)


async def test_metering_says_that_its_ledger_cannot_be_written_and_that_it_can_again(clock: FakeClock) -> None:
    class FullLedger(GatedLedger):
        full = False

        async def probe(self) -> None:
            if self.full:
                raise ledger_unavailable()

        async def append(self, reports: Sequence[UsageEvent], prices: PriceTable, now_ns: int) -> list[Disposition]:
            raise ledger_unavailable()

    told: list[bool] = []
    ledger = FullLedger()
    async with (
        working(Bench(clock, ledger)) as bench,
        background(bench.metering.watch_ledger(told.append), "watch-ledger"),
    ):
        await settle()
        assert told == [True]
        ledger.full = True
        with pytest.raises(MeshError, match="LEDGER_UNAVAILABLE"):
            await bench.record(usage_event())
        await settle()
        assert told == [True, False], "the commit that failed is looked into at once"
        ledger.full = False
        clock.advance(PROBE_AGAIN_S)
        await settle()
        assert told == [True, False, True]
