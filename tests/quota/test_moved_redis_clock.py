"""A real server whose wall clock is set ahead and back, as the service meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.domain.limits import Usage, rows_of
from forebay.quota.domain.reservations import Order, Outcome, Router, Swept, Terms
from forebay.quota.domain.safety import Ask
from forebay.quota.redis_counters import RedisCounters
from forebay.quota.redis_safety import RedisSafety
from forebay.quota.sweeper import TOLERANCE_MS
from forebay.testing.movable_clock import MovableClock
from forebay.testing.valkey import ValkeyServer

pytestmark = pytest.mark.slow

ROUTER = Router("router-1", 1)
TENANT = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(requests_per_minute=3))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey", clock=MovableClock(tmp_path / "clock"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def counters(server: ValkeyServer) -> AsyncIterator[RedisCounters]:
    counters = RedisCounters(server.url, Terms())
    running = asyncio.create_task(counters.run())
    await counters.begin("acme", lost=False)
    yield counters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def admitted(counters: RedisCounters, at: int) -> int:
    outcomes = []
    for number in range(at, at + 5):
        order = Order(f"{number:032x}", ROUTER, 1, 1)
        outcomes.append((await counters.reserve("acme", order, rows_of(TENANT, Usage(1, 1, 1)))).outcome)
    return outcomes.count(Outcome.ADMITTED)


@pytest.mark.parametrize("ahead", [600, 86_400])
async def test_a_clock_that_is_ahead_for_a_while(server: ValkeyServer, counters: RedisCounters, ahead: int) -> None:
    safety = RedisSafety(server.url)
    before = (await counters.ping()).clock_ms
    assert (await safety.grant(5, Ask(9))).permits == 5
    assert await admitted(counters, 0) == 3
    server.set_clock(ahead)
    assert (await safety.grant(5, Ask(9))).permits == 5
    assert await admitted(counters, 10) == 3
    assert await counters.sweep("acme", 9, before + 60_000 + TOLERANCE_MS) == Swept()  # no lease ends by a step
    assert len(await counters.reservations("acme", "", 99)) == 6
    server.set_clock(0)
    chunk = await safety.grant(5, Ask(9))
    assert chunk.permits == 0
    assert chunk.wait_ms <= 1_110
    while not (await safety.grant(5, Ask(1))).permits:  # within 1.11 s of the server's own time
        await asyncio.sleep(0.05)
    decision = await counters.reserve("acme", Order("f" * 32, ROUTER, 1, 1), rows_of(TENANT, Usage(1, 1, 1)))
    assert decision.outcome is Outcome.REFUSED
    assert decision.retry_after_ms <= 61_000
    await safety.close()


async def test_a_server_that_may_evict_says_so(server: ValkeyServer, counters: RedisCounters) -> None:
    assert (await counters.ping()).evicts == ""
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    assert (await counters.ping()).evicts == "allkeys-lru"
