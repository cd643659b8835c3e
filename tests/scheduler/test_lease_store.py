"""The store of the lease: the script decides as the specification does, and says when nobody answers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import count

import pytest

from forebay.errors import Code, MeshError
from forebay.redis_client import redis_client
from forebay.scheduler.domain.lease import ANY_TIME_US, Answer, Bid
from forebay.scheduler.lease_store import LeaseStore, MemoryLeaseStore
from forebay.scheduler.redis_lease_store import RedisLeaseStore
from forebay.testing.clock import FakeClock

_domains = count(1)


@pytest.fixture
async def redis_store(redis_url: str, clock: FakeClock) -> AsyncIterator[RedisLeaseStore]:
    store = RedisLeaseStore(redis_url, f"test-{next(_domains)}", lambda: int(clock.now() * 1e6))
    yield store
    await store.close()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, clock: FakeClock) -> LeaseStore:
    if request.param == "memory":
        return MemoryLeaseStore(clock)
    found: RedisLeaseStore = request.getfixturevalue("redis_store")
    return found


def now_us(clock: FakeClock) -> int:
    return int(clock.now() * 1e6)


def bid(id: str = "s1", *, epoch: int = 0, may_take: bool = True, checkpoint: str | None = None) -> Bid:
    return Bid(id, 1, f"{id}:1", epoch, 0, ANY_TIME_US if may_take else 0, checkpoint)


async def test_a_lease_passes_from_one_to_the_next(store: LeaseStore, clock: FakeClock) -> None:
    first = await store.bid(bid())
    assert first == Answer(now_us(clock), "s1:1", True, now_us(clock))
    clock.advance(1)
    assert await store.bid(bid("s2")) == Answer(first.epoch, "s1:1", False, now_us(clock))
    assert await store.bid(bid(epoch=first.epoch, checkpoint="ünder way")) == Answer(
        first.epoch, "s1:1", True, now_us(clock)
    )
    clock.advance(3)
    second = await store.bid(bid("s2"))
    assert (second.mine, second.epoch > first.epoch, second.checkpoint) == (True, True, "ünder way")
    await store.release(first.epoch)
    assert not (await store.bid(bid())).mine
    await store.release(second.epoch)
    assert await store.bid(bid("s3", may_take=False)) == Answer(0, "", False, now_us(clock))
    assert (await store.bid(bid("s3"))).checkpoint == "ünder way"


@pytest.mark.parametrize("seed", range(3))
async def test_the_script_decides_as_specified(redis_store: RedisLeaseStore, clock: FakeClock, seed: int) -> None:
    draw, memory, epochs = random.Random(seed), MemoryLeaseStore(clock), [0]
    for _ in range(120):
        clock.advance(draw.choice((0.0, 0.000001, 0.4, 2.999999, 3.0, 3.000001, -10.0)))
        left = draw.choice((None, "", "a", "b"))
        if draw.random() < 0.15:
            epoch = draw.choice(epochs[1:] or [1])
            await redis_store.release(epoch)
            await memory.release(epoch)
            continue
        id = draw.choice(("s1", "s2"))
        epoch, latest = draw.choice(epochs[-3:]), draw.choice((0, *epochs[-3:], now_us(clock) + 1))
        until_us = draw.choice((0, now_us(clock), now_us(clock) + 1, ANY_TIME_US))
        asked = Bid(id, draw.choice((1, 2)), f"{id}:1", epoch, latest, until_us, left)
        expected = await memory.bid(asked)
        assert await redis_store.bid(asked) == expected
        epochs += [expected.epoch] * (expected.epoch not in epochs)
    assert len(epochs) > 10


async def test_the_servers_own_time_makes_an_epoch(redis_url: str) -> None:
    store = RedisLeaseStore(redis_url, f"test-{next(_domains)}")
    answer = await store.bid(bid())
    assert answer.mine
    assert answer.epoch > 1_700_000_000_000_000
    await store.close()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+cluster://127.0.0.1:1"])
async def test_a_store_that_is_away_is_told_of(url: str) -> None:
    store = RedisLeaseStore(url, "default")
    for call in (store.bid(bid()), store.release(1)):
        with pytest.raises(MeshError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "LEASE_STORE_UNAVAILABLE")
    await store.close()


async def test_what_is_wrong_with_the_store_is_said(redis_url: str, redis_store: RedisLeaseStore) -> None:
    async with redis_client(redis_url) as redis:
        await redis.set(redis_store._key, "somebody else's")
    with pytest.raises(MeshError, match="the lease cannot be read or kept: ResponseError"):
        await redis_store.bid(bid())
