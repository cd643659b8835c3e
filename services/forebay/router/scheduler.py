"""The scheduler port: a request's sizes are queued, and some time later its life is told of a grant or a rejection."""

from __future__ import annotations

from typing import Protocol

from forebay.router.domain.events import Grant, Granted
from forebay.router.request import Request


class Scheduler(Protocol):
    """Takes sizes; answers through `Request.tell` with Granted or Rejected. Nothing here waits or raises."""

    def submit(self, request: Request) -> None:
        """Queues the request's present attempt; while the scheduler is away it waits, within a bound."""
        ...

    def withdraw(self, request_id: str, attempt: int) -> None:
        """Says that an attempt is over or no longer wanted, whether queued or granted."""
        ...

    def decline(self, request_id: str, attempt: int) -> None:
        """Says that a grant is not used."""
        ...


class MemoryScheduler:
    """The port's in-memory twin: grants everything at once, on the first worker that the request does not exclude.

    Attributes:
        workers: ids of the workers, all reached at an address equal to their id; a request that excludes them all stays queued,
            because an exclusion ends by time and the twin has no clock.
        log: (what, request id, attempt), in order.
    """

    def __init__(self, *workers: str) -> None:
        self.workers = list(workers)
        self.log: list[tuple[str, str, int]] = []

    def submit(self, request: Request) -> None:
        """Grants."""
        self.log.append(("submit", request.id, request.life.attempt))
        worker = next((worker for worker in self.workers if worker != request.life.excluded), None)
        if worker is not None:
            left = request.tokens.limit - request.life.base
            request.tell(Granted(Grant(request.life.attempt, worker, 1, worker, 0.0, left, b"")))

    def withdraw(self, request_id: str, attempt: int) -> None:
        """Keeps note."""
        self.log.append(("withdraw", request_id, attempt))

    def decline(self, request_id: str, attempt: int) -> None:
        """Keeps note."""
        self.log.append(("decline", request_id, attempt))
