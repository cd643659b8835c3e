"""Keeps the lease of a lending domain, and begins and ends terms as it is won and lost.

A follower has no core and no state: what it would know comes with the sessions of its own first term.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from forebay import killpoints
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.scheduler.domain.lease import Answer, Bid, Lease
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.takeover import Checkpoint
from forebay.scheduler.lease_store import LeaseStore
from forebay.scheduler.service import TICK_S, SchedulerService
from forebay.telemetry.logs import get_logger

log = get_logger("leadership")


@dataclass(frozen=True, slots=True)
class Replica:
    """One scheduler: its id, the start of its life in µs since the epoch, and where others reach it."""

    id: str
    incarnation: int
    address: str


class Leadership:
    """Who leads, as far as this replica knows.

    Attributes:
        term: the term that this replica leads in; None while it follows.
    """

    def __init__(
        self,
        store: LeaseStore,
        replica: Replica,
        clock: Clock,
        new_core: Callable[[int], Scheduler],
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares; `run` bids.

        Args:
            store: where the lease is.
            replica: this one.
            clock: for all times.
            new_core: makes the core of a term from its epoch.
            answered: called whenever the store has said who leads.
        """
        self._store = store
        self._replica = replica
        self._clock = clock
        self._new_core = new_core
        self._answered = answered
        self._lease = Lease()
        self._in_vain = False
        self._resigned = False
        self._bidding = asyncio.Lock()
        self.term: SchedulerService | None = None

    @property
    def epoch(self) -> int:
        """Of this replica's term; 0 while it follows."""
        return self.term.core.epoch if self.term is not None else 0

    @property
    def core(self) -> Scheduler | None:
        """Of this replica's term; None while it follows."""
        return self.term.core if self.term is not None else None

    @property
    def leader(self) -> str:
        """Where the leader listens when it is another; empty when not known."""
        return "" if self.term is not None else self._lease.leader

    def leading(self) -> SchedulerService:
        """Returns the term.

        Raises:
            MeshError: FAILED_PRECONDITION NOT_LEADER, with the leader's address in its metadata.
        """
        if self.term is None:
            raise _not_leader(self.leader)
        return self.term

    def heard(self, epoch: int) -> None:
        """A peer has met a leader of an epoch; the next bid is for one that is no lower."""
        self._lease.heard(epoch)

    async def run(self) -> None:
        """Bids again and again until cancelled, or until this replica has resigned."""
        while True:
            async with self._bidding:
                if self._resigned:
                    return
                pause = await self.bid()
            await self._clock.sleep(pause)

    async def watch_time(self) -> None:
        """Has the core see what has ended by time, until cancelled."""
        while True:
            await self._clock.sleep(TICK_S)
            self._look()

    async def bid(self) -> float:
        """Asks for the lease, or to keep it; returns after how many seconds to ask again."""
        asked_at = self._clock.monotonic()
        bid = Bid(
            self._replica.id,
            self._replica.incarnation,
            self._replica.address,
            self.epoch,
            self._lease.latest,
            self._lease.takes_until_us(asked_at),
            # It is large, and asked in vain it would be made for nothing.
            None if self._in_vain else self._checkpoint(),
        )
        try:
            answer = await self._store.bid(bid)
        except MeshError as error:
            if not self._in_vain:
                log.warning("the lease is not answered for", leading=self.epoch != 0, message=error.message)
            self._in_vain = True
            pause = self._lease.unanswered(asked_at)
            self._look()
            return pause
        if self._in_vain:
            log.info("the lease is answered for again")
        self._in_vain = False
        if bid.checkpoint is not None:
            killpoints.reached("scheduler.after_checkpoint")
        pause = self._lease.answered(answer, asked_at, self._clock.monotonic())
        if self._lease.epoch != self.epoch:
            self._end_term()
            if answer.mine:
                self._begin_term(answer)
        self._answered()
        self._look()
        return pause

    async def resign(self) -> None:
        """Ends the term and gives the lease up, for good, so that another need not wait until it expires."""
        async with self._bidding:
            self._resigned = True
            if self.term is not None:
                await self.bid()  # leaves the last checkpoint, while everybody is still connected
            epoch, self._lease = self.epoch, Lease()
            self._end_term()
            if epoch:
                try:
                    await self._store.release(epoch)
                except MeshError as error:
                    log.warning("the lease is not given up and will expire", message=error.message)

    def _look(self) -> None:
        if self.term is not None:
            self.term.look_at_time()

    def _checkpoint(self) -> str | None:
        checkpoint = self.term.checkpoint() if self.term is not None else None
        return None if checkpoint is None else checkpoint.to_text()

    def _begin_term(self, answer: Answer) -> None:
        killpoints.reached("scheduler.after_lease")
        try:
            checkpoint = Checkpoint.from_text(answer.checkpoint)
        except ValueError:
            log.warning("the checkpoint cannot be read and is left")
            checkpoint = Checkpoint()
        log.info("leads", epoch=answer.epoch, routers=len(checkpoint.routers), workers=len(checkpoint.workers))

        def may_grant(now: float) -> bool:
            return self.term is term and self._lease.may_grant(now)

        term = self.term = SchedulerService(self._new_core(answer.epoch), self._clock, checkpoint, may_grant)
        term.wake()

    def _end_term(self) -> None:
        if self.term is not None:
            log.info("leads no longer", epoch=self.epoch, leader=self._lease.leader)
            term, self.term = self.term, None
            term.end(_not_leader(self.leader))


def _not_leader(leader: str) -> MeshError:
    where = f"ask {leader}" if leader else "who does is not known"
    return MeshError(
        Code.FAILED_PRECONDITION, "NOT_LEADER", f"this scheduler does not lead; {where}", metadata={"leader": leader}
    )
