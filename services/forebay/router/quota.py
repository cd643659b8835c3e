"""The quota port: room under the tenant's limits is held before a request runs, and settled once when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forebay.errors import MeshError
from forebay.router.domain.decisions import Settlement
from forebay.router.request import Request


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold on the tenant's limits.

    Attributes:
        start_after_s: the request is to start no earlier than this from now: the tenant is being slowed down.
    """

    start_after_s: float = 0.0


class Quota(Protocol):
    """Holds and settles; keeps the holds of live requests from lapsing by itself."""

    async def reserve(self, request: Request) -> Reservation:
        """Holds prompt + max_tokens.

        Raises:
            MeshError: RESOURCE_EXHAUSTED naming every limit without room; INVALID_ARGUMENT for a request that no wait makes fit;
                UNAVAILABLE when quota cannot be reached within the bounded wait, DEADLINE_EXCEEDED when the request's own time
                is over sooner. Nothing is held then, or soon nothing.
        """
        ...

    def settle(self, request: Request, settlement: Settlement) -> None:
        """Charges what was used and frees the rest; returns at once and is repeated until quota has it."""
        ...


class MemoryQuota:
    """The port's in-memory twin, with room for everyone unless `refusal` is set.

    Attributes:
        refusal: what the next reservations are refused with.
        held: ids of requests held now.
        settled: each settlement, by request id.
    """

    def __init__(self) -> None:
        self.refusal: MeshError | None = None
        self.held: set[str] = set()
        self.settled: dict[str, Settlement] = {}

    async def reserve(self, request: Request) -> Reservation:
        """Holds, or raises `refusal`."""
        if self.refusal is not None:
            raise self.refusal
        self.held.add(request.id)
        return Reservation()

    def settle(self, request: Request, settlement: Settlement) -> None:
        """Settles; a second settlement of one request is a bug."""
        self.held.remove(request.id)
        assert request.id not in self.settled
        self.settled[request.id] = settlement
