"""The port to the permits of the global safety limit, and its in-memory twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from forebay.quota.domain.safety import Ask, Chunk, Grants


class SafetyStore(Protocol):
    """The permits granted to all replicas; `forebay.quota.domain.safety.Grants` says what a grant does.

    It is atomic and takes the present from the store itself. It raises MeshError (UNAVAILABLE, QUOTA_STORE_UNAVAILABLE) when the
    store cannot be reached; permits may then have been granted to nobody, which count all the same.
    """

    async def grant(self, limit: int, ask: Ask) -> Chunk:
        """Takes back what is returned, then grants what fits."""


class InMemorySafety:
    """The specification itself as a store, for tests; `now` returns ms since the epoch."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._grants = Grants()
        self._now = now

    async def grant(self, limit: int, ask: Ask) -> Chunk:
        """Takes back what is returned, then grants what fits."""
        return self._grants.grant(self._now(), limit, ask)
