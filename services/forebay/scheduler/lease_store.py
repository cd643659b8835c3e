"""The store that the schedulers of a domain share: the lease, and what its holder leaves to the next."""

from __future__ import annotations

from typing import Protocol

from forebay.clock import Clock
from forebay.scheduler.domain.lease import Answer, Bid, Tenure


class LeaseStore(Protocol):
    """Holds one domain's `Tenure`; each call is one step of it.

    Every method raises MeshError UNAVAILABLE LEASE_STORE_UNAVAILABLE when the store does not answer; what was asked may have
    happened.
    """

    async def bid(self, bid: Bid) -> Answer:
        """Asks for the lease, or to keep it."""
        ...

    async def release(self, epoch: int) -> None:
        """Gives the lease of a term up."""
        ...


class MemoryLeaseStore:
    """The port's in-memory twin, for a scheduler that is alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tenure = Tenure()

    async def bid(self, bid: Bid) -> Answer:
        """Decides."""
        self._tenure, answer = self._tenure.on(bid, int(self._clock.now() * 1e6))
        return answer

    async def release(self, epoch: int) -> None:
        """Forgets the holder."""
        self._tenure = self._tenure.released(epoch)
