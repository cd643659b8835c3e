"""What only the adapter does: gathering calls, loading scripts, and losing the server and finding it again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError

from forebay.errors import Code, MeshError
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.domain.limits import Usage, rows_of
from forebay.quota.domain.rebuild import NeedsRebuildError
from forebay.quota.domain.reservations import Observation, Order, Outcome, Router, Terms
from forebay.quota.domain.safety import Ask
from forebay.quota.redis_counters import _SWEEP, LANES, MAX_PIPELINE, RedisCounters
from forebay.quota.redis_safety import RedisSafety
from forebay.testing.valkey import ValkeyCluster, ValkeyServer

ROWS = rows_of(TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500), Usage(1, 10, 10))

LIMITED = rows_of(
    TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500, limits=Limits(9, 9, 9, 9, 9, 9, 9)), Usage(0, 0, 0)
)


def order(number: int) -> Order:
    return Order(f"{number:032x}", Router("router-1", 7), 10, 10)


@pytest.fixture
async def redis_counters(redis_counters: RedisCounters) -> RedisCounters:
    """The server's counters, with one tenant."""
    await redis_counters.begin("acme", lost=False)
    return redis_counters


def statistics(url: str) -> dict[str, int]:
    with redis.Redis.from_url(url) as client:
        return {name: calls["calls"] for name, calls in client.info("commandstats").items()}


@pytest.fixture
def batches(redis_counters: RedisCounters) -> list[list[Any]]:
    """What is sent, a list for each round trip."""
    batches: list[list[Any]] = []
    execute = redis_counters._execute

    async def watched(batch: Sequence[Any]) -> list[Any]:
        batches.append(list(batch))
        return await execute(batch)

    redis_counters._execute = watched
    return batches


async def test_calls_of_one_tick_share_a_round_trip(redis_counters: RedisCounters, batches: list[list[Any]]) -> None:
    await asyncio.gather(redis_counters.sweep("acme", 1), redis_counters.reserve("acme", order(0), ROWS))
    batches.clear()
    await asyncio.gather(*(redis_counters.sweep("acme", 1) for _ in range(MAX_PIPELINE + 20)))
    assert [len(batch) for batch in batches] == [MAX_PIPELINE, 20]
    batches.clear()
    await asyncio.gather(*(redis_counters.reserve("acme", order(number), ROWS) for number in range(1, 101)))
    assert len(batches) == LANES
    assert sum(map(len, batches)) == 100


async def test_a_settlement_never_overtakes_its_reservation(empty_redis_url: str) -> None:
    counters = RedisCounters(empty_redis_url, Terms())  # nobody sends
    async with asyncio.TaskGroup() as group:
        calls = []
        for number in range(60):
            calls.append(group.create_task(counters.reserve("acme", order(number), ROWS)))
            calls.append(group.create_task(counters.settle("acme", order(number).request_id, {})))
        await asyncio.sleep(0)
        for lane in counters._lanes:
            waiting = [call.script.name for call in lane.waiting]
            assert waiting == ["reserve", "settle"] * (len(waiting) // 2) != []
        for call in calls:
            call.cancel()


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(
    redis_counters: RedisCounters, empty_redis_url: str
) -> None:
    for number in range(2):
        with redis.Redis.from_url(empty_redis_url) as client:
            client.script_flush()
        assert (await redis_counters.reserve("acme", order(number), ROWS)).outcome is Outcome.ADMITTED
    assert statistics(empty_redis_url)["cmdstat_evalsha"] >= 4


async def test_all_keys_of_a_tenant_share_its_tag_and_end_together_after_a_month(
    redis_counters: RedisCounters, empty_redis_url: str
) -> None:
    await redis_counters.reserve("acme", order(1), ROWS)
    await redis_counters.settle("acme", order(1).request_id, {})
    await redis_counters.reserve("acme", order(2), ROWS)
    with redis.Redis.from_url(empty_redis_url, decode_responses=True) as client:
        keys = {str(key): client.ttl(key) for key in client.scan_iter()}
    assert set(keys) == {f"forebay:{{acme}}:{part}" for part in ("counters", "reservations", "settled", "due")}
    # A hold whose reservation ended before it would be nobody's to give back.
    assert min(keys.values()) > 31 * 86_400
    assert max(keys.values()) - min(keys.values()) <= 1


async def test_zero_is_the_servers_own_time(empty_redis_url: str) -> None:
    counters = RedisCounters(empty_redis_url, Terms())
    running = asyncio.create_task(counters.run())
    await counters.begin("acme", lost=False)
    await counters.reserve("acme", order(1), ROWS)
    (reservation,) = await counters.reservations("acme", "", 1)
    with redis.Redis.from_url(empty_redis_url) as client:
        seconds, _ = client.time()
    assert 0 <= seconds - reservation.reserved_at_ms // 1000 <= 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_number_of_waiting_calls_is_bounded(empty_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.quota.redis_counters.MAX_WAITING", 3)
    counters = RedisCounters(empty_redis_url, Terms())  # nobody sends
    for _ in range(3):
        counters._call(_SWEEP, "acme")
    with pytest.raises(MeshError) as caught:
        await counters.sweep("acme", 1)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "QUOTA_STORE_OVERLOADED")


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "own")
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
async def test_a_lost_server_is_a_typed_error_and_is_found_again(own_server: ValkeyServer) -> None:
    counters = RedisCounters(own_server.url, Terms())
    running = asyncio.create_task(counters.run())
    for number in range(2):
        await asyncio.gather(*(counters.begin("acme", lost=False) for _ in range(3)))
        # All of a first pipeline after a restart: connections that died while nobody used them are noticed.
        calls = (counters.reserve("acme", order(each), ROWS) for each in range(3 * number, 3 * number + 3))
        assert {decision.outcome for decision in await asyncio.gather(*calls)} == {Outcome.ADMITTED}
        own_server.kill()
        with pytest.raises(MeshError) as caught:
            await counters.reserve("acme", order(9), ROWS)
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE")
        with pytest.raises(MeshError):
            await counters.ping()
        own_server.start()
    await counters.ping()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.slow
async def test_a_server_that_no_longer_writes_is_looked_for_anew(own_server: ValkeyServer) -> None:
    # What stands behind its name may be another one by now; an open connection would lead to this one for ever.
    counters, safety = RedisCounters(own_server.url, Terms()), RedisSafety(own_server.url)
    running = asyncio.create_task(counters.run())
    await counters.begin("acme", lost=False)
    with redis.Redis.from_url(own_server.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        for ask in (lambda: counters.settle("acme", order(1).request_id, {}), lambda: safety.grant(1, Ask(1))):
            connections = []
            for _ in range(2):
                with pytest.raises(MeshError) as caught:
                    await ask()
                assert caught.value.reason == "QUOTA_STORE_UNAVAILABLE"
                connections.append(client.info("stats")["total_connections_received"])
            assert connections[0] < connections[1]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await safety.close()


async def test_a_cluster_of_which_no_node_answers_is_a_typed_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    counters = RedisCounters(f"redis+cluster://127.0.0.1:{port}", Terms())
    safety = RedisSafety(f"redis+cluster://127.0.0.1:{port}")
    running = asyncio.create_task(counters.run())
    calls: list[Awaitable[Any]] = [
        counters.reserve("acme", order(1), ROWS),
        counters.reserve("acme", order(1), ROWS),
        counters.tenants(),
        counters.usage_cursor(),
        counters.keep_usage_cursor("v1:1"),
        counters.ping(),
        safety.grant(1, Ask(1)),
    ]
    for call in calls:
        with pytest.raises(MeshError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE")
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await safety.close()


@pytest.mark.slow
async def test_a_cluster_is_asked_once_whatever_becomes_of_the_answer(
    cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    safety = RedisSafety(cluster.url)
    await safety.grant(1, Ask(1))
    asked = []

    async def lose(self: RedisCluster, node: object, *command: object, **options: object) -> None:
        asked.append(command[0])
        raise ConnectionError("lost")

    monkeypatch.setattr(RedisCluster, "_execute_command", lose)
    with pytest.raises(MeshError) as caught:
        await safety.grant(1, Ask(1))
    assert (caught.value.reason, asked) == ("QUOTA_STORE_UNAVAILABLE", ["EVALSHA"])
    await safety.close()


@pytest.mark.slow
async def test_what_was_held_outlives_a_kill_and_each_life_has_a_name(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "durable", durable=True)
    server.start()
    counters = RedisCounters(server.url, Terms())
    running = asyncio.create_task(counters.run())
    await counters.begin("acme", lost=False)
    await counters.reserve("acme", order(1), ROWS)
    await counters.observe("acme", [Observation(order(1).request_id, 1, {}, final=True)])
    await counters.keep_usage_cursor("v1:1")
    life = (await counters.ping()).life
    assert (await counters.ping()).life == life
    server.kill()
    server.start()
    while True:
        try:
            assert (await counters.ping()).life != life
            break
        except MeshError:  # it still loads
            await asyncio.sleep(0.01)
    assert await counters.usage_cursor() == "v1:1"
    assert [held.order for held in await counters.reservations("acme", "", 9)] == [order(1)]
    assert await counters.settle("acme", order(1).request_id, {})
    assert {state.used for state in await counters.peek("acme", LIMITED)} == {0}
    server.stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("key", ["counters", "reservations", "settled", "due"])
async def test_a_tenant_that_the_server_has_lost_is_to_be_rebuilt(
    redis_counters: RedisCounters, empty_redis_url: str, key: str
) -> None:
    await redis_counters.begin("acme", lost=False)
    await redis_counters.reserve("acme", order(1), ROWS)
    with redis.Redis.from_url(empty_redis_url) as client:
        client.delete(f"forebay:{{acme}}:{key}")  # all of it is lost with any of its keys
    for asked in (
        redis_counters.reserve("acme", order(2), ROWS),
        redis_counters.settle("acme", order(1).request_id, {}),
        redis_counters.renew("acme", order(1).router, [order(1).request_id], ROWS),
        redis_counters.peek("acme", LIMITED),
        redis_counters.sweep("acme", 1),
    ):
        with pytest.raises(NeedsRebuildError):
            await asked
    with redis.Redis.from_url(empty_redis_url) as client:
        client.flushall()
    assert await redis_counters.begin("acme", lost=False)
    assert not await redis_counters.settle("acme", order(1).request_id, {})
    assert {state.used for state in await redis_counters.peek("acme", LIMITED)} == {0}


async def test_a_cancelled_caller_harms_nobody_else(redis_counters: RedisCounters) -> None:
    gone = asyncio.ensure_future(redis_counters.reserve("acme", order(1), ROWS))
    stays = asyncio.ensure_future(redis_counters.reserve("acme", order(2), ROWS))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).outcome is Outcome.ADMITTED
