"""The lease in Redis or Valkey: one hash for each domain, and a script for each step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forebay.errors import Code, MeshError
from forebay.redis_client import FAILURES, redis_client
from forebay.scheduler.domain.lease import RENEW_S, TTL_S, Answer, Bid

# An answer that comes later would come when the leader's own view of its lease is about to end.
TIMEOUT_S = RENEW_S
_SCRIPTS = Path(__file__).parent / "lua"


class RedisLeaseStore:
    """A `LeaseStore` on one Redis. One that forgets what it was told lets the leader go on, or elects one by its own clock."""

    def __init__(self, url: str, domain: str, now_us: Callable[[], int] = lambda: 0) -> None:
        """Prepares the client; nothing is connected yet.

        Args:
            url: as `redis_client` takes it.
            domain: the lending domain.
            now_us: the present in µs since the epoch, 0 for the server's own time.
        """
        self._key = f"forebay:leader:{{{domain}}}"
        self._now_us = now_us
        self._redis = redis_client(url, TIMEOUT_S)
        self._bid = self._redis.register_script((_SCRIPTS / "bid.lua").read_text("utf-8"))
        self._release = self._redis.register_script((_SCRIPTS / "release.lua").read_text("utf-8"))

    async def bid(self, bid: Bid) -> Answer:
        """Decides by one script."""
        given = bid.checkpoint is not None
        arguments = [
            self._now_us(), round(TTL_S * 1e6), bid.id, bid.incarnation, bid.address, bid.epoch, bid.latest,
            bid.takes_until_us, int(given), bid.checkpoint or "",
        ]  # fmt: skip
        epoch, address, mine, now_us, checkpoint = await self._run(self._bid, arguments)
        return Answer(int(epoch), address, bool(mine), int(now_us), checkpoint)

    async def release(self, epoch: int) -> None:
        """Gives the lease up by one script."""
        await self._run(self._release, [epoch])

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _run(self, script: Any, arguments: list[Any]) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S):  # for connecting and all else together
                return await script(keys=[self._key], args=arguments)
        except FAILURES as error:
            message = f"the lease cannot be read or kept: {type(error).__name__} {error}".rstrip()
            raise MeshError(Code.UNAVAILABLE, "LEASE_STORE_UNAVAILABLE", message) from None
