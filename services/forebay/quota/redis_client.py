"""The client of Redis or Valkey, one server or a cluster, with the settings that everything in this service wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from forebay.errors import Code, MeshError

CLUSTER = "redis+cluster://"
TIMEOUT_S = 2.0
RETRY_AFTER_S = 1.0
# That no node of a cluster answers is none of the library's other errors.
FAILURES = (RedisError, RedisClusterException, OSError)


def redis_client(url: str) -> Any:
    """Returns a client; nothing is connected yet.

    Nothing is repeated by itself after a lost connection: whether a script ran is not known then, and who asked knows better.

    Args:
        url: redis://host:port/db, or redis+cluster://host:port for the cluster that this node is part of.
    """
    # RESP2: with RESP3 the client also listens for maintenance notices and so overlooks that a pooled connection is closed.
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": True,
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
    }
    if url.startswith(CLUSTER):
        return RedisCluster.from_url(f"redis://{url.removeprefix(CLUSTER)}", **options)
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


@contextmanager
def reaching_the_store() -> Iterator[None]:
    """Turns what a client raises into QUOTA_STORE_UNAVAILABLE."""
    try:
        yield
    except FAILURES as error:
        raise unavailable(error) from None


def unavailable(error: Exception) -> MeshError:
    """Returns what callers are told of a failure."""
    return MeshError(
        Code.UNAVAILABLE,
        "QUOTA_STORE_UNAVAILABLE",
        f"the counters cannot be reached ({type(error).__name__}); try again",
        retry_after=RETRY_AFTER_S,
    )
