"""The policies in force, and who is told when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.quota.domain.policies import Change, Policies, difference

# Changes that may wait for one watcher. They are made by hand, so a watcher with this many open does not read at all.
MAX_WAITING = 64
MAX_WATCHES = 1_000


@dataclass(frozen=True, slots=True)
class Edition:
    """The policies as of one version, and what changed to get there."""

    version: int
    policies: Policies
    change: Change


class Watch:
    """One watcher's place in the sequence of editions.

    Attributes:
        first: the edition in force when the watch began; `next` returns those after it.
    """

    def __init__(self, first: Edition) -> None:
        self.first = first
        self._waiting: asyncio.Queue[Edition] = asyncio.Queue(MAX_WAITING)
        self._behind = False

    async def next(self) -> Edition:
        """Returns the next edition once there is one.

        Raises:
            MeshError: ABORTED; more editions waited than are kept, and the watcher has to begin again.
        """
        if self._behind:
            raise MeshError(Code.ABORTED, "WATCH_BEHIND", "the watch fell behind; begin again from a snapshot")
        return await self._waiting.get()

    def tell(self, edition: Edition) -> None:
        """Keeps an edition for the watcher."""
        try:
            self._waiting.put_nowait(edition)
        except asyncio.QueueFull:
            self._behind = True


class PolicyFeed:
    """Holds the policies in force.

    Versions are µs since the epoch, so that those of a restarted process are never taken for its predecessor's.
    """

    def __init__(self, policies: Policies, clock: Clock) -> None:
        self._clock = clock
        self._watches: set[Watch] = set()
        self.edition = Edition(self._version(0), policies, difference(Policies(), policies))

    @property
    def policies(self) -> Policies:
        """The policies in force."""
        return self.edition.policies

    def publish(self, policies: Policies) -> None:
        """Puts policies in force and tells every watcher; nobody is told when nothing has changed."""
        if policies == self.policies:
            return
        self.edition = Edition(self._version(self.edition.version), policies, difference(self.policies, policies))
        for watch in self._watches:
            watch.tell(self.edition)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Watches from the edition in force on, until the end of the block.

        Raises:
            MeshError: RESOURCE_EXHAUSTED; there are too many watches.
        """
        if len(self._watches) >= MAX_WATCHES:
            raise MeshError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_WATCHES",
                f"{MAX_WATCHES:,} routers and workers watch the policies already, as many as may; try again later",
                retry_after=1.0,
            )
        watch = Watch(self.edition)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def _version(self, last: int) -> int:
        return max(last + 1, int(self._clock.now() * 1e6))
