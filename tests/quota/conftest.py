"""Fixtures of the quota tests: the counters, as specified and on a real server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis

from forebay.policy.model import Limits, ServiceClass, TenantPolicy, Thresholds
from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.limits import Usage, rows_of
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.reservations import Decision, Order, Router, Terms
from forebay.quota.policies import PolicyFeed
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.redis_counters import RedisCounters
from forebay.quota.usage_sums import InMemorySums
from forebay.testing.clock import FakeClock
from forebay.testing.valkey import ValkeyCluster

ROUTER = Router("router-1", 1_700_000_000_123_456)


@pytest.fixture
def empty_redis_url(redis_url: str) -> str:
    """The real server's address, with nothing stored."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture
async def redis_counters(empty_redis_url: str, clock: FakeClock) -> AsyncIterator[RedisCounters]:
    """The counters on the real server, at the time of `clock`."""
    counters = RedisCounters(empty_redis_url, Terms(), lambda: int(clock.now() * 1000))
    running = asyncio.create_task(counters.run())
    yield counters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """A real cluster of three, of the same servers as `valkey`."""
    named = os.environ.get("FOREBAY_TEST_REDIS_SERVER")
    cluster = ValkeyCluster(tmp_path_factory.mktemp("cluster"), Path(named) if named else None)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
async def cluster_counters(cluster: ValkeyCluster, clock: FakeClock) -> AsyncIterator[RedisCounters]:
    """The counters on the cluster, at the time of `clock`."""
    cluster.flush()
    counters = RedisCounters(cluster.url, Terms(), lambda: int(clock.now() * 1000))
    running = asyncio.create_task(counters.run())
    yield counters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(params=["memory", "server", pytest.param("cluster", marks=pytest.mark.slow)])
def bare_store(request: pytest.FixtureRequest, clock: FakeClock) -> CounterStore:
    """Every implementation of the port in turn, at the time of `clock`; tenants are absent."""
    if request.param == "memory":
        return InMemoryCounters(Terms(), lambda: int(clock.now() * 1000), all_new=False)
    name = "cluster_counters" if request.param == "cluster" else "redis_counters"
    counters: CounterStore = request.getfixturevalue(name)
    return counters


@pytest.fixture
def store(bare_store: CounterStore, clock: FakeClock) -> CounterStore:
    """The same, with a ledger that knows nobody: all tenants are new."""
    return RebuildingCounters(bare_store, PolicyFeed(Policies(), clock), InMemorySums(), clock.now)


@pytest.fixture
def tenant() -> TenantPolicy:
    """A tenant with small limits, never warned."""
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=2)
    return TenantPolicy(
        "acme", "basic", ServiceClass.BRONZE, 500, limits=limits, thresholds=Thresholds(warn_percent=1000)
    )


@pytest.fixture
def reserve(store: CounterStore, tenant: TenantPolicy) -> Callable[..., object]:
    """Reserves as the service does: `await reserve("a", prompt, completion)` for the request id aaa..."""

    async def reserve(name: str, prompt: int = 1, completion: int = 9, router: Router = ROUTER) -> Decision:
        order = Order(name * 32, router, prompt, completion)
        return await store.reserve(tenant.tenant_id, order, rows_of(tenant, Usage(1, prompt, completion)))

    return reserve
