"""The permits of the global safety limit in Redis or Valkey: one key for all tenants, and one script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from forebay.quota.domain.safety import BUCKET_MS, SPAN, Ask, Chunk
from forebay.quota.redis_failures import reaching_the_store
from forebay.redis_client import redis_client

# Belongs to no tenant, so it has no tag: in a cluster it is wherever it falls.
KEY = "forebay:safety"


class RedisSafety:
    """A `SafetyStore` on one Redis.

    A server that forgets what it was told (a crash without its append-only file, or the last second with it) may grant the limit
    once more in that second.
    """

    def __init__(self, url: str, now: Callable[[], int] = lambda: 0) -> None:
        """Prepares the client; nothing is connected yet.

        Args:
            url: as `redis_client` takes it.
            now: the present in ms since the epoch, 0 for the server's own time.
        """
        self._now = now
        self._redis = redis_client(url)
        self._script = self._redis.register_script((Path(__file__).parent / "lua" / "safety.lua").read_text("utf-8"))

    async def grant(self, limit: int, ask: Ask) -> Chunk:
        """Takes back what is returned, then grants what fits."""
        arguments = [self._now(), limit, ask.permits, ask.returned, ask.bucket, BUCKET_MS, SPAN]
        with reaching_the_store():
            return Chunk(*await self._script(keys=[KEY], args=arguments))

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()
