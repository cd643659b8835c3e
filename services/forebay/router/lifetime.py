"""The end of a router: requests that run are given time, and each that has to end is told why."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from forebay.rpc.server import RpcServer

# For the status of a call that has just ended to reach its client.
LAST_STATUS_S = 1.0


class RouterServer(RpcServer):
    """An `RpcServer` that goes on to answer while it drains, so that its health and its refusals can be read."""

    def __init__(
        self, listen: str, drain: Callable[[float], Awaitable[None]], last_words_s: float, **options: Any
    ) -> None:
        """Binds `listen`.

        Args:
            listen: where.
            drain: refuses what comes, and returns once no request is left, some time after the seconds that it is given.
            last_words_s: how much later it returns at most.
            options: as of `RpcServer`.
        """
        super().__init__(listen, **options)
        self.last_words_s = last_words_s + LAST_STATUS_S
        self._drain_requests = drain

    async def drain(self, grace_s: float) -> None:
        """Says NOT_SERVING, lets requests go on for `grace_s` seconds, ends the rest, and then stops."""
        await self.stop_serving()
        await self._drain_requests(grace_s)
        await super().drain(LAST_STATUS_S)
