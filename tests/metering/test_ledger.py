"""One suite for every ledger: once, in order, in any order."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.config import ConfigError
from forebay.errors import Code, MeshError
from forebay.metering.domain.charge import Usage, charge
from forebay.metering.domain.entry import GENESIS, LedgerEntry
from forebay.metering.domain.event import NANO, AttemptKey, Outcome, Source, UsageEvent
from forebay.metering.domain.posting import Disposition
from forebay.metering.domain.prices import Item, Price, PriceTable
from forebay.metering.domain.selection import DAY_NS, Dimension, Total, UsageFilter
from forebay.metering.ledger import Ledger, MemoryLedger
from forebay.metering.sqlite_ledger import open_ledger

from .doubles import limit_pages
from .samples import NOON_NS, TABLE, request_id, usage_event

Open = Callable[[], AbstractAsyncContextManager[Ledger]]
EVERYTHING = UsageFilter()
ALL = 1_000_000


@asynccontextmanager
async def in_memory() -> AsyncIterator[Ledger]:
    yield MemoryLedger()


@asynccontextmanager
async def in_sqlite() -> AsyncIterator[Ledger]:
    with TemporaryDirectory() as directory:
        async with open_ledger(Path(directory) / "ledger.db") as ledger:
            yield ledger


LEDGERS = {"memory": in_memory, "sqlite": in_sqlite}


@pytest.fixture(params=LEDGERS)
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    async with LEDGERS[request.param]() as ledger:
        yield ledger


async def append(
    ledger: Ledger, *reports: UsageEvent, prices: PriceTable = TABLE, at: int = NOON_NS
) -> list[Disposition]:
    return await ledger.append(reports, prices, at)


async def entries(ledger: Ledger, selection: UsageFilter = EVERYTHING, after: int = 0) -> Sequence[LedgerEntry]:
    return (await ledger.read(after, selection, ALL)).entries


async def grand_total(ledger: Ledger, selection: UsageFilter = EVERYTHING) -> Total:
    (total,) = await ledger.sum(selection, [])
    return total


def assert_whole(rows: Sequence[LedgerEntry]) -> None:
    """Positions are dense, and each tenant's chain holds."""
    assert [entry.row.position for entry in rows] == list(range(1, len(rows) + 1))
    last: dict[str, bytes] = {}
    for entry in rows:
        tenant = entry.row.event.tenant_id
        assert entry.chain_hash == hashlib.sha256(last.get(tenant, GENESIS) + entry.body.encode()).digest()
        last[tenant] = entry.chain_hash


async def test_an_event_becomes_a_row_with_its_price(ledger: Ledger) -> None:
    event = usage_event()
    assert await append(ledger, event) == [Disposition.RECORDED]
    (entry,) = await entries(ledger)
    assert (entry.row.position, entry.row.event, entry.row.corrects) == (1, event, 0)
    assert entry.row.usage == Usage(1, 1, 100, 40, 20, 50_000_000)
    assert {line.item: line.quantity for line in entry.row.lines} == {
        Item.PROMPT_TOKENS: 60,
        Item.CACHED_TOKENS: 40,
        Item.COMPLETION_TOKENS: 20,
        Item.GPU_SECONDS: 50_000_000,
        Item.REQUESTS: 1,
    }
    assert entry.row.recorded_at_ns == NOON_NS
    assert await ledger.head() == 1
    assert_whole([entry])


async def test_the_same_event_again_changes_nothing(ledger: Ledger) -> None:
    event = usage_event()
    assert await append(ledger, event, event) == [Disposition.RECORDED, Disposition.UNCHANGED]
    assert await append(ledger, event) == [Disposition.UNCHANGED]
    assert len(await entries(ledger)) == 1


async def test_a_better_event_becomes_a_correction_with_the_differences(ledger: Ledger) -> None:
    recovery = usage_event(source=Source.WORKER_RECOVERY, completion_to=12)
    await append(ledger, usage_event(2), recovery)
    worker = usage_event(source=Source.WORKER, completion_to=20)
    assert await append(ledger, worker) == [Disposition.CORRECTED]
    correction = (await entries(ledger))[2]
    assert (correction.row.corrects, correction.row.event) == (2, worker)
    assert correction.row.usage == Usage(completion_tokens=8)
    assert [(line.item, line.quantity) for line in correction.row.lines] == [
        (Item.COMPLETION_TOKENS, -12),
        (Item.COMPLETION_TOKENS, 20),
    ]
    assert await append(ledger, recovery) == [Disposition.UNCHANGED]


async def test_a_later_attempt_clips_the_earlier_one(ledger: Ledger) -> None:
    await append(ledger, usage_event(attempt=1, completion_to=20, outcome=Outcome.LOST))
    await append(ledger, usage_event(attempt=2, completion_from=15, completion_to=40))
    first, clip, second = (entry.row for entry in await entries(ledger))
    assert (clip.corrects, clip.event.attempt, clip.usage) == (first.position, 1, Usage(completion_tokens=-5))
    assert (second.corrects, second.usage.completion_tokens, second.usage.prompt_tokens) == (0, 25, 0)
    total = await grand_total(ledger)
    assert (total.usage.attempts, total.usage.requests, total.usage.completion_tokens) == (2, 1, 40)


async def test_an_earlier_attempt_that_comes_late_takes_over_the_prompt(ledger: Ledger) -> None:
    second = usage_event(attempt=2, completion_from=5, completion_to=20)
    await append(ledger, second, usage_event(attempt=1, source=Source.ROUTER, cached_tokens=0, completion_to=5))
    assert (await grand_total(ledger)).usage == Usage(1, 1, 100, 40, 15, 50_000_000)
    await ledger.confirm(NOON_NS, TABLE, NOON_NS, 10)
    alone, first, moved = (entry.row for entry in await entries(ledger))
    assert (alone.event, alone.corrects) == (second, 0)
    assert (first.event.attempt, first.corrects) == (1, 0)
    assert first.usage == Usage(1, 1, 100, 0, 5, 50_000_000)
    assert (moved.event, moved.corrects) == (second, alone.position)
    assert moved.usage == Usage(0, -1, -100, -40, 0, 0)
    assert {line.item: line.quantity for line in moved.lines} == {
        Item.PROMPT_TOKENS: -60,
        Item.CACHED_TOKENS: -40,
        Item.REQUESTS: -1,
    }
    assert (await grand_total(ledger)).usage == Usage(2, 1, 100, 0, 20, 100_000_000)


async def test_a_lost_attempt_bills_the_larger_of_checkpoint_and_delivered(ledger: Ledger) -> None:
    recovery = usage_event(1, source=Source.WORKER_RECOVERY, completion_to=12, outcome=Outcome.LOST)
    await append(ledger, usage_event(1, source=Source.ROUTER, completion_to=17), recovery)
    (held_before,) = await entries(ledger)
    assert (held_before.row.event.outcome, held_before.row.usage.completion_tokens) == (Outcome.LOST, 17)
    behind, ahead = (usage_event(1, source=Source.ROUTER, completion_to=to) for to in (15, 19))
    assert await append(ledger, behind, ahead) == [Disposition.UNCHANGED, Disposition.CORRECTED]
    # The next attempt went on where the client was, and that the router knew exactly.
    await append(ledger, usage_event(1, attempt=2, completion_from=18, completion_to=30))
    assert (await grand_total(ledger)).usage.completion_tokens == 30
    assert (await entries(ledger))[-2].row.usage.completion_tokens == -1


async def test_a_correction_of_the_outcome_moves_the_row_to_its_group(ledger: Ledger) -> None:
    await append(ledger, usage_event(source=Source.WORKER_RECOVERY, outcome=Outcome.LOST))
    await append(ledger, usage_event(source=Source.WORKER, outcome=Outcome.COMPLETED))
    rows = [entry.row for entry in await entries(ledger)]
    assert [(row.event.outcome, row.usage.attempts, row.corrects) for row in rows] == [
        (Outcome.LOST, 1, 0),
        (Outcome.LOST, -1, 1),
        (Outcome.COMPLETED, 1, 1),
    ]
    (total,) = await ledger.sum(EVERYTHING, [Dimension.OUTCOME])
    assert (total.group, total.usage) == (("completed",), rows[0].usage)


async def test_a_routers_event_waits_for_the_workers(ledger: Ledger) -> None:
    router = usage_event(source=Source.ROUTER)
    assert await append(ledger, router, router) == [Disposition.HELD, Disposition.UNCHANGED]
    assert await ledger.confirm(NOON_NS - 1, TABLE, NOON_NS + NANO, 10) == []
    assert await ledger.head() == 0
    assert await ledger.confirm(NOON_NS, TABLE, NOON_NS + NANO, 10) == [Disposition.RECORDED]
    assert await ledger.confirm(NOON_NS, TABLE, NOON_NS + NANO, 10) == []
    (entry,) = await entries(ledger)
    assert (entry.row.event, entry.row.recorded_at_ns) == (router, NOON_NS + NANO)


async def test_a_workers_event_takes_up_the_routers(ledger: Ledger) -> None:
    await append(ledger, usage_event(source=Source.ROUTER, completion_to=25))
    worker = usage_event(source=Source.WORKER, completion_to=20)
    assert await append(ledger, worker, usage_event(source=Source.ROUTER, completion_to=25)) == [
        Disposition.RECORDED,
        Disposition.UNCHANGED,
    ]
    assert await ledger.confirm(NOON_NS + DAY_NS, TABLE, NOON_NS, 10) == []
    assert [entry.row.event for entry in await entries(ledger)] == [worker]


async def test_confirming_is_bounded(ledger: Ledger) -> None:
    await append(ledger, *(usage_event(n, source=Source.ROUTER) for n in range(5)))
    assert [len(await ledger.confirm(NOON_NS, TABLE, NOON_NS, 2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_request_has_one_tenant(ledger: Ledger) -> None:
    await append(ledger, usage_event(tenant_id="acme"))
    for source in (Source.WORKER, Source.ROUTER):
        stranger = usage_event(attempt=2, tenant_id="globex", source=source)
        assert await append(ledger, stranger) == [Disposition.CONFLICT]
    assert await ledger.head() == 1


async def test_reading_goes_on_where_the_page_before_ended(ledger: Ledger) -> None:
    await append(ledger, *(usage_event(n, tenant_id=("acme", "globex")[n % 2]) for n in range(10)))
    seen, after = [], 0
    while True:
        page = await ledger.read(after, UsageFilter(tenant_ids=frozenset({"globex"})), 2)
        after = page.position
        seen += [entry.row.position for entry in page.entries]
        if len(page.entries) < 2:
            break
    assert seen == [2, 4, 6, 8, 10]
    assert after == 10


async def test_a_page_tells_how_far_it_looked(ledger: Ledger) -> None:
    assert (await ledger.read(0, EVERYTHING, 5)).position == 0
    await append(ledger, *(usage_event(n) for n in range(3)))
    assert (await ledger.read(0, UsageFilter(models=frozenset({"none"})), 5)).position == 3
    assert (await ledger.read(0, EVERYTHING, 2)).position == 2
    assert (await ledger.read(3, EVERYTHING, 2)).position == 3


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (EVERYTHING, [0, 1, 2, 3]),
        (UsageFilter(tenant_ids=frozenset({"acme"})), [0, 1]),
        (UsageFilter(tenant_ids=frozenset({"acme", "globex"}), outcomes=frozenset({Outcome.FAILED})), [3]),
        (UsageFilter(key_ids=frozenset({"other"})), [1]),
        (UsageFilter(models=frozenset({"big", "none"})), [2]),
        (UsageFilter(request_ids=frozenset({request_id(0), request_id(3)})), [0, 3]),
        (UsageFilter(except_request_ids=frozenset({request_id(0), request_id(3)})), [1, 2]),
        (UsageFilter(finished_from_ns=NOON_NS + DAY_NS), [2, 3]),
        (UsageFilter(finished_from_ns=NOON_NS + 1, finished_before_ns=NOON_NS + 2 * DAY_NS + 1), [1, 2, 3]),
        (UsageFilter(finished_before_ns=(NOON_NS // DAY_NS + 1) * DAY_NS), [0, 1]),
        (UsageFilter(finished_from_ns=(NOON_NS // DAY_NS + 1) * DAY_NS), [2, 3]),
    ],
)
async def test_filters_select_rows_and_totals_alike(
    ledger: Ledger, selection: UsageFilter, expected: list[int]
) -> None:
    events = [
        usage_event(0),
        usage_event(1, key_id="other", finished_at_ns=NOON_NS + 1),
        usage_event(2, tenant_id="globex", model="big", finished_at_ns=NOON_NS + DAY_NS),
        usage_event(3, tenant_id="globex", outcome=Outcome.FAILED, finished_at_ns=NOON_NS + 2 * DAY_NS),
    ]
    await append(ledger, *events)
    found = await entries(ledger, selection)
    assert [entry.row.event for entry in found] == [events[n] for n in expected]
    assert (await grand_total(ledger, selection)).cost_nano_usd == sum(entry.row.cost_nano_usd for entry in found)


@pytest.mark.parametrize("from_ns", [None, 0, 1, DAY_NS // 2, DAY_NS, DAY_NS + 1, 2 * DAY_NS])
@pytest.mark.parametrize("for_ns", [None, 0, 1, DAY_NS - 1, DAY_NS, 2 * DAY_NS, 3 * DAY_NS - 1])
async def test_days_in_part_and_whole_add_up_to_their_rows(
    ledger: Ledger, from_ns: int | None, for_ns: int | None
) -> None:
    midnight_ns = NOON_NS // DAY_NS * DAY_NS
    times = [midnight_ns + n * DAY_NS // 2 + extra for n in range(8) for extra in (0, 1)]
    await append(
        ledger, *(usage_event(n, key_id=str(n % 3), finished_at_ns=time_ns) for n, time_ns in enumerate(times))
    )
    selection = UsageFilter(
        except_request_ids=frozenset({request_id(4), request_id(7), "f" * 32}),
        finished_from_ns=None if from_ns is None else midnight_ns + from_ns,
        finished_before_ns=None if for_ns is None else midnight_ns + (from_ns or 0) + for_ns,
    )
    found = await entries(ledger, selection)
    costs: dict[str, int] = {}
    for entry in found:
        key_id = entry.row.event.key_id
        costs[key_id] = costs.get(key_id, 0) + entry.row.cost_nano_usd
    by_key = await ledger.sum(selection, [Dimension.KEY])
    assert {total.group[0]: total.cost_nano_usd for total in by_key} == costs
    assert (await grand_total(ledger, selection)).usage.requests == len(found)


async def test_sums_come_by_group_in_order(ledger: Ledger) -> None:
    await append(
        ledger,
        usage_event(1, tenant_id="globex"),
        usage_event(2),
        usage_event(3, finished_at_ns=NOON_NS + DAY_NS),
        usage_event(4, outcome=Outcome.FAILED),
    )
    totals = await ledger.sum(EVERYTHING, [Dimension.DAY, Dimension.TENANT])
    assert [(total.group, total.usage.requests) for total in totals] == [
        (("2023-11-15", "acme"), 2),
        (("2023-11-15", "globex"), 1),
        (("2023-11-16", "acme"), 1),
    ]
    assert len(await ledger.sum(EVERYTHING, list(Dimension))) == 4


async def test_an_empty_ledger_has_one_empty_grand_total(ledger: Ledger) -> None:
    assert await grand_total(ledger) == Total((), Usage(), 0)
    assert await ledger.sum(EVERYTHING, [Dimension.TENANT]) == []


async def test_too_many_groups_are_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ledger", "sqlite_ledger"):
        monkeypatch.setattr(f"forebay.metering.{module}.MAX_TOTALS", 2)
    await append(ledger, *(usage_event(n, key_id=str(n)) for n in range(3)))
    with pytest.raises(MeshError) as caught:
        await ledger.sum(EVERYTHING, [Dimension.KEY])
    assert caught.value.code is Code.OUT_OF_RANGE


async def test_a_changed_price_does_not_touch_what_is_booked(ledger: Ledger) -> None:
    dearer = PriceTable([*TABLE.prices, Price("tenant:acme", Item.COMPLETION_TOKENS, 10**9, NOON_NS + DAY_NS)])
    await append(ledger, usage_event(1))
    before = await grand_total(ledger)
    await append(ledger, usage_event(1), prices=dearer)
    assert await grand_total(ledger) == before
    await append(ledger, usage_event(2, finished_at_ns=NOON_NS + DAY_NS), prices=dearer)
    assert (await entries(ledger))[-1].row.lines[2].source == "tenant:acme"


# --- any order, any repetition


@st.composite
def histories(draw: st.DrawFn) -> list[UsageEvent]:
    """Reports of a few requests: some attempts each, of each attempt what some of the three sources say."""
    reports = []
    for request in range(draw(st.integers(1, 3))):
        for attempt in draw(st.sets(st.integers(1, 4), min_size=1, max_size=3)):
            start = draw(st.integers(0, 8))
            for source in draw(st.sets(st.sampled_from(Source), min_size=1)):
                report = usage_event(
                    request,
                    attempt,
                    source,
                    tenant_id=("acme", "globex")[request % 2],
                    prompt_tokens=draw(st.integers(100, 103)),
                    cached_tokens=draw(st.integers(0, 100)),
                    completion_from=start,
                    completion_to=start + draw(st.integers(0, 8)),
                    gpu_time_ns=draw(st.integers(10, 10**9)),
                    recomputed_gpu_time_ns=draw(st.integers(0, 10)),
                    finished_at_ns=NOON_NS + draw(st.integers(0, 1)) * DAY_NS,
                    outcome=draw(st.sampled_from(Outcome)),
                )
                reports.append(report)
    return reports


def expected_totals(reports: Sequence[UsageEvent]) -> dict[tuple[str, ...], tuple[Usage, int]]:
    """What the best event of each attempt bills, by day, tenant and outcome; worked out from all events at once."""
    best: dict[AttemptKey, UsageEvent] = {}
    for key in {report.key for report in reports}:
        said = {report.source: report for report in reports if report.key == key}
        best[key] = said[min(said)]
        if min(said) is Source.WORKER_RECOVERY:
            best[key] = replace(best[key], completion_to=max(report.completion_to for report in said.values()))
    totals: dict[tuple[str, ...], tuple[Usage, int]] = {}
    for event in best.values():
        others = [other for other in best.values() if other.request_id == event.request_id]
        first = event.attempt == min(other.attempt for other in others)
        later = [other.completion_from for other in others if other.attempt > event.attempt]
        until = min([event.completion_to, *later])
        if later and event.source is Source.WORKER_RECOVERY:
            until = min(later)
        usage = Usage(
            attempts=1,
            requests=int(first),
            prompt_tokens=event.prompt_tokens * first,
            cached_tokens=event.cached_tokens * first,
            completion_tokens=max(0, until - event.completion_from),
            gpu_time_ns=event.gpu_time_ns - event.recomputed_gpu_time_ns,
        )
        group = tuple(dimension.of(event) for dimension in (Dimension.DAY, Dimension.TENANT, Dimension.OUTCOME))
        before, cost = totals.get(group, (Usage(), 0))
        lines = charge(event, usage, TABLE)
        totals[group] = before + usage, cost + sum(line.amount_nano_usd for line in lines)
    return totals


@pytest.mark.slow
@pytest.mark.parametrize("open_one", LEDGERS.values(), ids=LEDGERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), reports=histories())
def test_order_and_repetition_do_not_matter(open_one: Open, data: st.DataObject, reports: list[UsageEvent]) -> None:
    repeated = data.draw(st.permutations(reports + data.draw(st.lists(st.sampled_from(reports), max_size=5))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(repeated)), max_size=4)))
    batches = [repeated[a:b] for a, b in zip([0, *cuts], [*cuts, len(repeated)], strict=True)]
    confirmed_after = data.draw(st.sets(st.integers(0, len(batches) - 1)))

    async def play() -> None:
        async with open_one() as ledger:
            for n, batch in enumerate(batches):
                await append(ledger, *batch)
                if n in confirmed_after:
                    await ledger.confirm(NOON_NS, TABLE, NOON_NS, 100)
            await ledger.confirm(NOON_NS, TABLE, NOON_NS, 100)
            rows = await entries(ledger)
            assert_whole(rows)
            assert sum(entry.row.corrects == 0 for entry in rows) == len({report.key for report in reports})
            totals = await ledger.sum(EVERYTHING, [Dimension.DAY, Dimension.TENANT, Dimension.OUTCOME])
            assert {t.group: (t.usage, t.cost_nano_usd) for t in totals} == expected_totals(reports)
            # A filter by request cannot be answered from the totals, so this adds up the rows themselves.
            by_row = await grand_total(ledger, UsageFilter(request_ids=frozenset(r.request_id for r in reports)))
            assert by_row == await grand_total(ledger)
            assert sum(entry.row.cost_nano_usd for entry in rows) == by_row.cost_nano_usd

    asyncio.run(play())


# --- SQLite alone


async def test_the_file_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.db"
    async with open_ledger(path) as ledger:
        await append(ledger, usage_event(1), usage_event(2, source=Source.ROUTER))
    async with open_ledger(path) as ledger:
        assert await append(ledger, usage_event(1)) == [Disposition.UNCHANGED]
        assert await ledger.confirm(NOON_NS, TABLE, NOON_NS, 10) == [Disposition.RECORDED]
        assert_whole(await entries(ledger))


async def test_the_database_itself_refuses_a_second_row_of_an_attempt(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await append(ledger, usage_event())
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        columns = ", ".join(name for _, name, *_ in db.execute("PRAGMA table_info(entries)") if name != "position")
        again = f"INSERT INTO entries (position, {columns}) SELECT 2, {columns} FROM entries"
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(again)
        db.execute(again.replace("SELECT 2, request_id", "SELECT 2, 'another'"))  # so it was for the attempt
    db.close()


async def test_a_path_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    for path in (tmp_path / "file" / "ledger.db", tmp_path, tmp_path / "text.db"):
        with pytest.raises(ConfigError, match="ledger_path"):
            async with open_ledger(path):
                pass


async def test_a_full_disk_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await append(ledger, usage_event(1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "ledger.db-wal").stat().st_size, hard))
        try:
            with pytest.raises(MeshError) as caught:
                await append(ledger, usage_event(2))
            with pytest.raises(MeshError, match="LEDGER_UNAVAILABLE"):
                await ledger.probe()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await ledger.probe()
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        assert await append(ledger, usage_event(1), usage_event(2)) == [Disposition.UNCHANGED, Disposition.RECORDED]
        assert_whole(await entries(ledger))


async def test_a_file_that_may_not_grow_recovers_by_itself_once_it_may(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await append(ledger, usage_event(0, source=Source.ROUTER))
        limit_pages(ledger, 30)

        async def fill() -> None:
            for number in range(1, 100):
                await append(ledger, usage_event(number))

        with pytest.raises(MeshError) as caught:
            await fill()
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        recorded = await ledger.head()
        assert recorded
        limit_pages(ledger, 1_000)
        assert await append(ledger, usage_event(recorded), usage_event(recorded + 1)) == [
            Disposition.UNCHANGED,
            Disposition.RECORDED,
        ]
        assert await ledger.confirm(NOON_NS, TABLE, NOON_NS, 10) == [Disposition.RECORDED]
        assert_whole(await entries(ledger))


async def test_a_ledger_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db"):
        pass
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="later release"):
        async with open_ledger(tmp_path / "ledger.db"):
            pass
