"""What routers say they hold on workers that have not said what they run; what becomes of it: takeover.py."""

from dataclasses import dataclass

from forebay.scheduler.domain import refusals
from forebay.scheduler.domain.request import AttemptKey, Request

MAX_REPORTED = 20_000
"""Attempts from before a session that one worker, and all routers together, may tell of."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that a router holds, granted or running, on a worker."""

    request: Request
    router: str
    worker_id: str


class Claims:
    """The claims of all routers, by attempt."""

    def __init__(self) -> None:
        self._claims: dict[AttemptKey, Claim] = {}

    def get(self, key: AttemptKey) -> Claim | None:
        """Returns the claim to an attempt."""
        return self._claims.get(key)

    def add(self, claim: Claim) -> None:
        """Notes a claim.

        Raises:
            MeshError: RESOURCE_EXHAUSTED TOO_MANY_REPORTED.
        """
        if len(self._claims) >= MAX_REPORTED:
            raise refusals.too_many_reported(MAX_REPORTED)
        self._claims[claim.request.key] = claim

    def discard(self, key: AttemptKey) -> None:
        """Forgets the claim to an attempt, if there is one."""
        self._claims.pop(key, None)

    def router_lost(self, router: str) -> None:
        """Forgets what a session of a router has claimed."""
        self._claims = {key: claim for key, claim in self._claims.items() if claim.router != router}

    def worker_reported(self, worker_id: str) -> None:
        """Forgets what was claimed on a worker: it has said itself what it runs."""
        self._claims = {key: claim for key, claim in self._claims.items() if claim.worker_id != worker_id}
