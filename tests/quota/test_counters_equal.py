"""The scripts equal the specification: one random history is played on both, and every answer compared."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.counters import TenantCounters
from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.periods import Period
from forebay.quota.domain.rebuild import NeedsRebuildError
from forebay.quota.domain.reservations import Observation, Order, Router, Terms
from forebay.quota.redis_counters import RedisCounters, _key

TERMS = Terms(lease_ms=30_000, provisional_ms=100_000, remembered_ms=50_000)
START_MS = 1_700_000_000_000
# Money in amounts whose sums have more digits than a printed Lua number.
SCALE = 123_456_789_012_345
# At least 10,000 steps in all, each with a look at every row.
HISTORIES, LEAST_STEPS = 250, 40

# What a wrong clock is ahead or behind by, once it is wrong and once it is right again.
CLOCK_STEPS_MS = (600_000, -600_000, 86_400_000, -86_400_000)
KEYS = ("counters", "reservations", "settled", "due")

tenants = itertools.count()
request_ids = st.sampled_from(["0a", "0b", "1a", "1b", "2a", "2b"])
routers = st.sampled_from([Router("router-1", 1_700_000_000_123_456), Router("router-1", 1_700_000_000_123_457)])
values = st.none() | st.integers(1, 12)
amounts = st.integers(1, 6)
# Of more days than are kept, in whichever order callers name them; the soft thresholds lie below the limit, or do not exist.
periods = st.integers(1, 6).map(lambda day: Period(f"2023-11-1{day}", START_MS - 1_000, START_MS + day * 40_000))
softs = st.none() | st.integers(1, 8)


@dataclass(frozen=True)
class Step:
    """An operation, `after_ms` after the one before by a clock that steps; named by the store's method, or one of those below."""

    after_ms: int
    name: str
    arguments: tuple[Any, ...]

    async def __call__(self, store: CounterStore, tenant: str) -> Any:
        operation = _rebuild if self.name == "rebuild" else getattr(type(store), self.name)
        try:
            return await operation(store, tenant, *self.arguments)
        except NeedsRebuildError as error:
            return error.reason


async def _rebuild(store: CounterStore, tenant: str, sums: tuple[Row, ...], lost: bool, late: bool) -> Any:
    """What quota does where a rebuild is needed; sometimes it comes too late."""
    gathered = await store.gathered(tenant)
    if gathered is None:
        return await store.begin(tenant, lost=lost)
    of_periods = [row for row in sums if row.period is not None]
    request_ids = gathered.request_ids + (("another",) if late else ())
    return gathered, await store.complete(tenant, replace(gathered, request_ids=request_ids), of_periods)


@st.composite
def rows(draw: st.DrawFn, least: int = 0) -> tuple[Row, ...]:
    """Rows of three subjects; a window is never asked for more than it can hold, as the service sees to.

    Most rows of one history have the same limits, so that they fill up; some have others, as after a change of policy.
    """

    def row(subject: str, limit: str, kind: Kind, scale: int = 1) -> Row:
        usual = st.shared(values, key=f"{subject}/{limit}")
        value = draw(st.one_of(usual, usual, usual, values))
        if kind is Kind.RATE:
            value = value or 3
        most = 6 if value is None else min(6, value)
        amount = draw(st.integers(least, most)) if kind is not Kind.HOLD else 1  # of a limit nothing may be asked, too
        warn_at, throttle_at = draw(softs), draw(softs)
        return Row(
            subject,
            limit,
            kind,
            None if value is None else value * scale,
            amount * scale,
            base=0 if value is None else max(1, value - 1) * scale,
            warn_at=None if value is None or warn_at is None else warn_at * scale,
            throttle_at=None if value is None or throttle_at is None else throttle_at * scale,
            period=draw(periods) if kind is Kind.PERIOD else None,
        )

    return (
        row("tenant:t", "requests_per_second", Kind.RATE),
        row("tenant:t", "tokens_per_minute", Kind.WINDOW),
        row("tenant:t", "input_tokens_per_minute", Kind.WINDOW),
        row("tenant:t", "output_tokens_per_minute", Kind.WINDOW),
        row("tenant:t/model:m", "tokens_per_minute", Kind.WINDOW),
        row("tenant:t", "concurrent_requests", Kind.HOLD),
        row("key:k", "concurrent_requests", Kind.HOLD),
        row("key:k", "tokens_per_day", Kind.PERIOD),
        row("tenant:t", "tokens_per_day", Kind.PERIOD),
        row("tenant:t", "daily_budget_nano_usd", Kind.PERIOD, SCALE),
    )


used = st.just({}) | st.fixed_dictionaries(
    {
        "tokens_per_minute": st.integers(0, 9),
        "input_tokens_per_minute": st.integers(0, 9),
        "output_tokens_per_minute": st.integers(0, 9),
        "tokens_per_day": st.integers(0, 9),
        "daily_budget_nano_usd": st.integers(0, 9).map(lambda amount: amount * SCALE),
    }
)


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    after = st.integers(-3_000, 3_000) | st.integers(0, 70_000) | st.sampled_from(CLOCK_STEPS_MS)
    return st.builds(Step, after, st.just(name), st.tuples(*arguments))


observations = st.builds(
    Observation,
    request_ids,
    st.integers(1, 9),
    used,
    st.booleans(),
)
orders = st.builds(Order, request_ids, routers, amounts, amounts)
usual = (
    step("reserve", orders, rows()),
    step("reserve", orders, rows()),
    step("settle", request_ids, used),
    step("observe", st.lists(observations, min_size=1, max_size=3)),
    step("renew", routers, st.lists(request_ids, min_size=1, max_size=3), rows()),
    step("sweep", st.integers(1, 3)),
    step("sweep", st.integers(1, 3), st.integers(START_MS - 90_000, START_MS + 900_000)),
    step("reservations", request_ids | st.just(""), st.integers(1, 3)),
    step("totals", rows()),
    step("take", rows().map(lambda each: tuple(row for row in each[:2] if row.value is not None))),
)
of_a_loss = (
    step("lose", st.sets(st.sampled_from(KEYS), min_size=1)),
    step("rebuild", rows(), st.booleans(), st.integers(0, 3).map(lambda n: n == 0)),
    step("rebuild", rows(), st.just(True), st.just(False)),
    step("restore", orders, st.integers(START_MS - 90_000, START_MS), rows()),
    step("restore", orders, st.integers(START_MS - 90_000, START_MS), rows()),
)
steps = st.one_of(*usual, *usual, *of_a_loss)


class Specification(InMemoryCounters):
    """The specification, by which a tenant is lost with any of its keys."""

    def __init__(self, terms: Terms, now: Callable[[], int]) -> None:
        super().__init__(terms, now, all_new=False)
        self._left: dict[str, set[str]] = {}

    async def lose(self, tenant: str, parts: Set[str] = frozenset(KEYS)) -> None:
        counters = self._tenants[tenant]
        there = self._left.get(tenant, set())
        if counters._meters.standing is not None:
            there = set(KEYS) if counters._live or counters._settled else set(KEYS) - {"due"}
        if there & parts:
            left = self._left[tenant] = there - parts
            self._tenants[tenant] = TenantCounters(TERMS, remains=bool(left))


class Server(RedisCounters):
    """The real server, which loses any of a tenant's keys at will."""

    async def lose(self, tenant: str, parts: Set[str] = frozenset(KEYS)) -> None:
        await self._redis.delete(*(_key(tenant, part) for part in parts))


async def play(url: str, history: list[Step], peeked: tuple[Row, ...]) -> None:
    tenant = f"t{next(tenants)}"
    now = START_MS

    def present() -> int:
        return now

    specification, server = Specification(TERMS, present), Server(url, TERMS, present)
    running = asyncio.create_task(server.run())
    try:
        for store in (specification, server):
            await store.begin(tenant, lost=False)
        for played in history:
            now += played.after_ms
            for each in (played, Step(0, "peek", (peeked,))):
                assert await each(specification, tenant) == await each(server, tenant), each
        everything = Step(0, "reservations", ("", 100))
        assert await everything(specification, tenant) == await everything(server, tenant)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.slow
@settings(
    max_examples=HISTORIES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.large_base_example,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(st.lists(steps, min_size=LEAST_STEPS, max_size=60), rows())
def test_every_history_has_the_same_answers(empty_redis_url: str, history: list[Step], peeked: tuple[Row, ...]) -> None:
    asyncio.run(play(empty_redis_url, history, peeked))
