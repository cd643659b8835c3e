"""What `forebay status` asks of the server of the counters."""

from __future__ import annotations

import pytest
import redis

from forebay.cli.health import valkey_eviction
from forebay.testing.valkey import ValkeyServer, free_port


@pytest.mark.parametrize(
    ("policy", "said"), [("noeviction", ""), ("allkeys-lru", "allkeys-lru"), ("volatile-ttl",) * 2]
)
async def test_a_server_that_may_evict_keys_is_shown(valkey: ValkeyServer, policy: str, said: str) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory-policy", policy)
        try:
            assert await valkey_eviction(f"127.0.0.1:{valkey.port}") == said
        finally:
            client.config_set("maxmemory-policy", "noeviction")


async def test_a_server_that_is_away_is_not_said_to_evict() -> None:
    assert await valkey_eviction(f"127.0.0.1:{free_port()}") == ""
