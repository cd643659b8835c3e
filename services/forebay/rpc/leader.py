"""A service of which one replica leads: which one to talk to, and where to look for it when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc

from forebay.errors import Code, MeshError

# Someone is elected within seconds, and whoever waits for it looks again this often.
MAX_BACKOFF_S = 0.3
# A leader that hangs has been replaced by then; whoever is connected to it does not see that in any other way.
HUNG_AFTER_S = 5.0


class LeaderChannel:
    """The channel to whichever replica is believed to lead.

    Every replica can be asked. One that follows names the leader, which may be one that nobody has listed; if that is not there,
    the same is asked again, and if one is not there, the next in the list. A leader of an epoch below the highest seen has been
    replaced without knowing it, and is left. A session's first message names that epoch: a leader of a store that has forgotten
    its epochs, or whose clock was ahead, begins a new term above it.

    Attributes:
        epoch: the highest of a leader that was met; 0 for none.
    """

    def __init__(self, addresses: Sequence[str], connect: Callable[[str], grpc.aio.Channel]) -> None:
        """Prepares; nothing is connected yet.

        Args:
            addresses: host:port of replicas, at least one.
            connect: opens a channel.
        """
        self._addresses = list(addresses)
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._asked = 0
        self._named = ""
        self.epoch = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The replica to talk to now."""
        return self._named or self._addresses[self._asked]

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to that replica."""
        if self.address not in self._channels:
            for gone in self._channels.keys() - self._addresses:
                closing = asyncio.create_task(self._channels.pop(gone).close(), name=f"close {gone}")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._channels[self.address] = self._connect(self.address)
        return self._channels[self.address]

    def welcomed(self, epoch: int, leader: str) -> None:
        """Takes a replica's welcome: the epoch that it leads in, or 0 and the leader's address as far as it knows.

        Raises:
            MeshError: FAILED_PRECONDITION NOT_LEADER; `lost` is to be told.
        """
        if epoch == 0 or epoch < self.epoch:
            message = "a later leader has been met" if epoch else "it follows"
            raise MeshError(
                Code.FAILED_PRECONDITION,
                "NOT_LEADER",
                f"{self.address} does not lead: {message}",
                metadata={"leader": leader},
            )
        self.epoch = epoch

    def lost(self, error: MeshError) -> None:
        """Decides whom to try next, when a session did not come about or has ended."""
        leader = error.metadata.get("leader", "") if error.reason == "NOT_LEADER" else ""
        if leader and leader != self.address:
            self._named = leader
        elif self._named:
            self._named = ""
        else:
            self._asked = (self._asked + 1) % len(self._addresses)

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()), *self._closing)
