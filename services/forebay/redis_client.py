"""The client of Redis or Valkey, one server or a cluster, with the settings that everything here wants."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError

CLUSTER = "redis+cluster://"
TIMEOUT_S = 2.0
# That no node of a cluster answers is none of the library's other errors.
FAILURES = (RedisError, RedisClusterException, OSError)


def redis_client(url: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Returns a client; nothing is connected yet.

    Nothing is repeated by itself after a lost connection: whether a script ran is not known then, and who asked knows better.

    Args:
        url: redis://host:port/db, or redis+cluster://host:port for the cluster that this node is part of.
        timeout_s: for an answer, and for a connection.
    """
    # RESP2: with RESP3 the client also listens for maintenance notices and so overlooks that a pooled connection is closed.
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.startswith(CLUSTER):
        return RedisCluster.from_url(f"redis://{url.removeprefix(CLUSTER)}", **options)
    # None, but a connection to a server that has become a replica is closed: its name may be another server's by now.
    return Redis.from_url(url, retry_on_error=[ReadOnlyError], **options)
