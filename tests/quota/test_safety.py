"""The global safety limit: the rule over any history, the script against the specification, and replicas on one real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forebay.errors import Code, MeshError
from forebay.policy.model import LossPolicy, ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.reservations import Order, Outcome, Router, Terms
from forebay.quota.domain.safety import LEASE_MS, Ask, Chunk, Grants, Share
from forebay.quota.policies import PolicyFeed
from forebay.quota.redis_safety import KEY, RedisSafety
from forebay.quota.safety import InMemorySafety, SafetyStore
from forebay.quota.safety_gate import SafetyGate
from forebay.quota.service import Quota
from forebay.testing.clock import FakeClock
from forebay.testing.valkey import ValkeyCluster

START_MS = 1_700_000_000_000


def most_in_a_second(times_ms: Sequence[float]) -> int:
    """Returns the largest number of times in any closed interval of one second."""
    times = sorted(times_ms)
    return max((sum(1 for at in times if begin <= at <= begin + 1_000) for begin in times), default=0)


# Around a bucket, a lease, a second, and a second and a lease: where a rule that is wrong by one of them shows.
PAUSES_MS = [0, 1, 9, 10, 99, 100, 890, 900, 910, 990, 1_000, 1_010, 1_099, 1_100, 1_101]
steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # the replica
        st.sampled_from(PAUSES_MS) | st.integers(0, 1_200),  # ms before it asks
        st.sampled_from([0, 0, 0, 7, 60]),  # ms until the store has the question
        st.sampled_from([0, 0, 0, 7, 120]),  # ms until the replica has the answer
        st.integers(0, 8),  # requests that wait
        st.integers(0, 12),  # permits that it asks for beside those that `Share` would
        st.lists(st.sampled_from([0, 0, 0, 1, 40, 99, 100]), max_size=8),  # ms between requests after them
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
# The end of a lease and what is granted a second later, one bucket too early; and a lease that is used for too long.
@example(steps=[(0, 0, 0, 0, 0, 3, [100, 0, 0]), (1, 1_100, 0, 0, 3, 0, [])], limit=3, lost=set())
@example(steps=[(0, 0, 0, 0, 0, 3, [300, 0, 0]), (1, 1_110, 0, 0, 3, 0, [])], limit=3, lost=set())
@given(steps=steps, limit=st.integers(1, 6), lost=st.sets(st.integers(0, 40), max_size=2))
def test_no_second_has_more_than_the_limit(steps: list, limit: int, lost: set[int]) -> None:
    grants, shares = Grants(), [Share(), Share(), Share()]
    clocks = [0.0, 7_777.25, 123_456.5]  # each replica's own
    passed: list[float] = []
    present = float(START_MS)  # of replicas that take their turns; the store's time is its whole ms
    for number, (replica, before, there, back, waiting, more, gaps) in enumerate(steps):
        share, offset = shares[replica], clocks[replica] - START_MS
        present += before
        ask = share.ask(present + offset, waiting)
        ask = replace(ask, permits=ask.permits + more)
        granted_at = int(present + there)
        chunk = grants.grant(granted_at, limit, ask)
        if number in lost:
            continue
        passed += [granted_at] * share.receive(present + offset, waiting, chunk)
        at = present + there + back
        for gap in gaps:
            at += gap
            passed += [at] * share.spend(at + offset)
        present += there
    assert most_in_a_second(passed) <= limit


def test_a_lone_replica_has_nine_tenths_of_the_limit_for_as_long_as_it_likes() -> None:
    grants, share, passed = Grants(), Share(), 0
    for at in range(START_MS, START_MS + 10_000, 2):
        if share.spend(at):
            passed += 1
        elif not share.wait_ms(at):
            passed += share.receive(at, 1, grants.grant(at, 100, share.ask(at, 1)))
    assert 900 <= passed <= 1_000


def test_what_is_not_spent_in_time_is_given_back() -> None:
    grants, share = Grants(), Share()
    assert share.receive(0, 0, grants.grant(START_MS, 10, Ask(10))) == 0
    assert share.spend(LEASE_MS)
    assert not share.spend(LEASE_MS + 0.5)
    ask = share.ask(150, 1)
    assert (ask.permits, ask.returned) == (2, 9)
    assert share.receive(150, 1, grants.grant(START_MS + 150, 10, ask)) == 1
    assert grants.grant(START_MS + 150, 10, Ask(10)).permits == 7  # of ten, one was spent and two are leased


@pytest.fixture
def cluster_url(cluster: ValkeyCluster) -> str:
    """A real cluster's address, with nothing stored."""
    cluster.flush()
    return cluster.url


URLS = ["empty_redis_url", pytest.param("cluster_url", marks=pytest.mark.slow)]


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    """The address of a real server, and of a real cluster."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(params=["memory", *URLS])
async def store(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[SafetyStore]:
    """Every implementation of the port in turn, at the time of `clock`."""
    if request.param == "memory":
        yield InMemorySafety(lambda: int(clock.now() * 1000))
        return
    store = RedisSafety(request.getfixturevalue(request.param), lambda: int(clock.now() * 1000))
    yield store
    await store.close()


# Between two asks, by a clock that steps.
AFTER_MS = st.integers(-20, 700) | st.sampled_from([600_000, -600_000])


async def test_a_store_grants_what_fits(store: SafetyStore, clock: FakeClock) -> None:
    first = await store.grant(10, Ask(4))
    assert first == Chunk(4, int(clock.now() * 100), 1_110)
    clock.advance(0.5)
    assert (await store.grant(10, Ask(8))).permits == 6
    full = await store.grant(10, Ask(1, returned=0, bucket=first.bucket))
    assert (full.permits, full.wait_ms) == (0, 610)
    assert (await store.grant(10, Ask(3, returned=2, bucket=first.bucket))).permits == 2
    clock.advance(0.61)
    assert (await store.grant(10, Ask(9))).permits == 2
    clock.advance(-600)  # the clock steps back, and nothing comes or goes by that
    full = await store.grant(10, Ask(9))
    assert (full.permits, full.wait_ms) == (0, 500)
    assert (await store.grant(5, Ask(1))).permits == 0  # nor is a lowered limit overrun
    clock.advance(0.5)
    assert (await store.grant(10, Ask(9))).permits == 8
    clock.advance(600)  # the clock steps forward, which looks as if time had passed
    assert (await store.grant(10, Ask(9))).permits == 9


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(
        st.tuples(AFTER_MS, st.integers(1, 9), st.integers(0, 12), st.integers(0, 3), st.integers(0, 30)),
        max_size=12,
    )
)
async def test_the_script_equals_the_specification(url: str, history: list) -> None:
    now_ms = START_MS
    specification, server = InMemorySafety(lambda: now_ms), RedisSafety(url, lambda: now_ms)
    await server._redis.delete(KEY)  # and with it the history before
    for after_ms, limit, permits, returned, ago in history:
        now_ms += after_ms
        ask = Ask(permits, returned, now_ms // 10 - ago)
        assert await specification.grant(limit, ask) == await server.grant(limit, ask)
    await server.close()


async def test_replicas_stay_within_the_limit_together(url: str, clock: FakeClock) -> None:
    stores = [RedisSafety(url, lambda: int(clock.now() * 1000)) for _ in range(3)]
    gates = [SafetyGate(store, clock, 50) for store in stores]
    passed: list[float] = []
    refused: list[MeshError] = []

    async def request(gate: SafetyGate) -> None:
        try:
            await gate.enter("0")
        except MeshError as error:
            refused.append(error)
        else:
            passed.append(clock.now() * 1000)

    for step in range(220):
        await asyncio.gather(*(request(gates[(step + n) % 3]) for n in range(step % 4)))
        clock.advance(0.0123)
    assert most_in_a_second(passed) <= 50
    assert len(passed) >= 0.85 * 50 * 220 * 0.0123
    assert refused
    assert {(error.code, error.reason) for error in refused} == {(Code.RESOURCE_EXHAUSTED, "GLOBAL_LIMIT")}
    assert all(error.retry_after and error.retry_after <= 1.11 for error in refused)
    for store in stores:
        await store.close()


class Slow(InMemorySafety):
    """The twin, whose answers wait; it keeps what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(lambda: int(clock.now() * 1000))
        self.asked: list[int] = []
        self.answer = asyncio.Event()
        self.away = False

    async def grant(self, limit: int, ask: Ask) -> Chunk:
        self.asked.append(ask.permits)
        await self.answer.wait()
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away", retry_after=1.0)
        return await super().grant(limit, ask)


async def test_requests_that_wait_share_a_round_trip(clock: FakeClock) -> None:
    store = Slow(clock)
    gate = SafetyGate(store, clock, 100)
    waiting = [asyncio.create_task(gate.enter(str(number))) for number in range(20)]
    while not store.asked:
        await asyncio.sleep(0)
    waiting[3].cancel()
    store.answer.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 19
    await gate.enter("0")
    for _ in range(20):  # the chunk of the one before them
        await gate.enter("0")
    assert store.asked == [20, 21]


class OneByOne(Slow):
    """The twin, which answers when it is let."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.answer.set()
        self.let = asyncio.Semaphore(0)

    async def grant(self, limit: int, ask: Ask) -> Chunk:
        await self.let.acquire()
        return await super().grant(limit, ask)


async def test_a_settlement_waits_for_a_request_that_came_again(clock: FakeClock) -> None:
    store = OneByOne(clock)
    gate = SafetyGate(store, clock, 100)
    first = asyncio.create_task(gate.enter("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is asked for
    again = asyncio.create_task(gate.enter("a"))
    await asyncio.sleep(0)
    store.let.release()
    await first
    settling = asyncio.create_task(gate.entered("a"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not settling.done()
    store.let.release()
    await asyncio.gather(again, settling)


async def test_who_waits_is_bounded_and_told_when_the_store_is_away(clock: FakeClock) -> None:
    store = Slow(clock)
    store.away = True
    gate = SafetyGate(store, clock, 2)
    tasks = [asyncio.create_task(gate.enter(str(number))) for number in range(5)]
    await asyncio.sleep(0)
    store.answer.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(error.reason for error in errors if isinstance(error, MeshError)) == [
        *["GLOBAL_LIMIT"] * 3,
        *["QUOTA_STORE_UNAVAILABLE"] * 2,
    ]
    store.away = False
    await gate.enter("0")


@pytest.mark.parametrize("loss_policy", LossPolicy)
async def test_only_who_fails_open_passes_while_the_store_is_away(clock: FakeClock, loss_policy: LossPolicy) -> None:
    store = Slow(clock)
    store.away = True
    store.answer.set()
    tenant = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, loss_policy=loss_policy)
    counters = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000))
    quota = Quota(
        PolicyFeed(Policies({"acme": tenant}, {}, {}), clock),
        counters,
        now=clock.now,
        gate=SafetyGate(store, clock, 2),
    )
    order = Order("0" * 32, Router("router-1", 1), 1, 1)
    if loss_policy is LossPolicy.FAIL_OPEN:
        assert (await quota.reserve("acme", order)).outcome is Outcome.ADMITTED
    else:
        with pytest.raises(MeshError, match="QUOTA_STORE_UNAVAILABLE"):
            await quota.reserve("acme", order)
