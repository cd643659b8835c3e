"""Drives the core for one term of leadership: the clock, the event loop's turns, and who is connected.

Whatever happens in one turn of the event loop is told to the core at once, and `wake` has the core decide once, at the turn's
end. So a burst of submissions is drawn as one batch, and each peer hears of it in one message. Deadlines are looked at every
TICK_S; one slow beat costs less than an exact timer that every submission would have to move.

While the takeover is not over or the lease is in doubt, the core hears everything and decides nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from forebay import killpoints
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.scheduler import metrics
from forebay.scheduler.domain.decisions import Batch, Decisions, Eviction, Grant, Rejection, Withdrawal
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.takeover import Checkpoint, Takeover
from forebay.scheduler.domain.worker import WorkerInfo
from forebay.tasks import guarded
from forebay.telemetry.tracing import from_headers, record_span

TICK_S = 0.05

RouterLink = Callable[[list[Grant], list[Rejection], float], None]
"""Tells one router, in one message, what may run and what will not; the last argument is the core's time now."""

Life = tuple[str, int]
"""A replica's id, and the start of its present life in µs since the epoch."""


@dataclass(frozen=True, slots=True)
class RouterSession:
    """A router's session: whose it is, and how to tell it something and to end it."""

    life: Life
    link: RouterLink
    end: Callable[[MeshError], None]


WorkerLink = Callable[[list[Batch], list[Withdrawal], list[Eviction], float], None]
"""Tells one worker, in one message, what will come, what will not, and what it is to hand over."""


class SchedulerService:
    """The scheduler at work in one term. All of it runs on one event loop.

    Attributes:
        core: tell it what happens, then call `wake`.
    """

    def __init__(
        self,
        core: Scheduler,
        clock: Clock,
        checkpoint: Checkpoint = Checkpoint(),  # noqa: B008 - immutable
        may_grant: Callable[[float], bool] = lambda now: True,
    ) -> None:
        """Begins a term.

        Args:
            core: new, of the term's epoch.
            clock: drives it.
            checkpoint: what the leader before has left.
            may_grant: whether the lease holds at a monotonic time.
        """
        self.core = core
        self._clock = clock
        self._inherited: Checkpoint | None = checkpoint
        self._takeover = Takeover(checkpoint, self.now)
        self._may_grant = may_grant
        self._routers: dict[str, RouterSession] = {}
        self._workers: dict[str, WorkerLink] = {}
        self._sessions: dict[Callable[[MeshError], None], None] = {}
        self._woken = False
        self._held_back = False

    @property
    def now(self) -> float:
        """The core's time."""
        return self._clock.monotonic()

    @contextmanager
    def session(self, end: Callable[[MeshError], None]) -> Iterator[None]:
        """Has a session ended by `end` when the term ends before it."""
        self._sessions[end] = None
        try:
            yield
        finally:
            del self._sessions[end]

    def end(self, error: MeshError) -> None:
        """Ends the term's sessions."""
        for end in list(self._sessions):
            end(error)

    def checkpoint(self) -> Checkpoint | None:
        """Returns what the next leader is to find; None while there is no more than the one before has left."""
        if self._inherited is not None:
            return None
        routers = frozenset(session.life[0] for session in self._routers.values())
        return Checkpoint(routers, frozenset(self._workers), self.core.leads())

    def router_opened(self, router: str, session: RouterSession) -> None:
        """Connects a router's session by the name of `router`, and ends any that the same life of the router had before.

        A connection that broke may be noticed here later than there, and what waits on it may be over.
        """
        for before in [each for each in self._routers.values() if each.life == session.life]:
            before.end(MeshError(Code.ABORTED, "SUPERSEDED", f"{session.life[0]} has opened another session since"))
        self._routers[router] = session

    def router_reported(self, router_id: str) -> None:
        """Takes note that a replica has said all that it holds."""
        self._takeover.router_reported(router_id)

    def router_closed(self, router: str) -> None:
        """Drops what the session had queued."""
        del self._routers[router]
        self.core.router_lost(router)
        self.wake()

    def worker_opened(self, info: WorkerInfo, link: WorkerLink) -> None:
        """Connects a worker's session, in place of any that it had before.

        Raises:
            MeshError: a later life of the worker has registered.
        """
        self.core.worker_registered(info)
        self._workers[info.id] = link
        self.wake()

    def worker_reported(self, worker_id: str) -> None:
        """Squares what a worker holds with what is known of it."""
        self.core.worker_reported(worker_id, self.now)
        self._takeover.worker_reported(worker_id)

    def worker_speaks(self, worker_id: str, link: WorkerLink) -> bool:
        """Whether the session is still the worker's latest."""
        return self._workers.get(worker_id) is link

    def worker_closed(self, worker_id: str, link: WorkerLink) -> None:
        """Stops granting to a worker, unless it has come back on another session."""
        if self.worker_speaks(worker_id, link):
            del self._workers[worker_id]
            self.core.worker_lost(worker_id, self.now)
            self.wake()

    def wake(self) -> None:
        """Has the core decide at the end of this turn of the event loop; calling it again in the turn changes nothing."""
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(guarded(self._tick, "scheduler tick"))

    def look_at_time(self) -> None:
        """Wakes the core when something has ended by time; call it every TICK_S."""
        if self._held_back or self.core.due(self.now):
            self.wake()

    def _tick(self) -> None:
        self._woken = False
        now = self.now
        self._held_back = not (self._may_grant(now) and self._taken_over(now))
        if self._held_back:
            return
        decisions = self.core.tick(now)
        metrics.count(decisions)
        if decisions.batches:
            killpoints.reached("scheduler.after_grant")
        for batch in decisions.batches:
            for grant in batch.grants:
                self._record_wait(grant)
        self._tell_workers(decisions, now)
        self._tell_routers(decisions, now)

    def _taken_over(self, now: float) -> bool:
        """Whether all have been heard; makes the flows what they were the first time that it is so."""
        if self._inherited is None:
            return True
        if not self._takeover.over(now):
            killpoints.reached("scheduler.during_takeover")
            return False
        self.core.restore(self._inherited.leads)
        self._inherited = None
        return True

    def _tell_workers(self, decisions: Decisions, now: float) -> None:
        batches: defaultdict[str, list[Batch]] = defaultdict(list)
        withdrawals: defaultdict[str, list[Withdrawal]] = defaultdict(list)
        evictions: defaultdict[str, list[Eviction]] = defaultdict(list)
        for batch in decisions.batches:
            batches[batch.worker_id].append(batch)
        for withdrawal in decisions.withdrawals:
            withdrawals[withdrawal.worker_id].append(withdrawal)
        for eviction in decisions.evictions:
            evictions[eviction.worker_id].append(eviction)
        for worker_id in batches.keys() | withdrawals.keys() | evictions.keys():
            if (link := self._workers.get(worker_id)) is not None:
                link(batches[worker_id], withdrawals[worker_id], evictions[worker_id], now)

    def _tell_routers(self, decisions: Decisions, now: float) -> None:
        grants: defaultdict[str, list[Grant]] = defaultdict(list)
        rejections: defaultdict[str, list[Rejection]] = defaultdict(list)
        for grant in (*decisions.repeats, *(grant for batch in decisions.batches for grant in batch.grants)):
            grants[grant.router].append(grant)
        for rejection in decisions.rejections:
            rejections[rejection.router].append(rejection)
        for router in grants.keys() | rejections.keys():
            if (session := self._routers.get(router)) is not None:
                session.link(grants[router], rejections[router], now)

    def _record_wait(self, grant: Grant) -> None:
        """Records `scheduler.queue`, from the first submission to the grant, under the span that the router sent."""
        trace = grant.request.trace
        offset = self._clock.now() - self._clock.monotonic()
        record_span(
            "scheduler.queue",
            from_headers({"traceparent": trace.traceparent, "tracestate": trace.tracestate}),
            offset + grant.enqueued_at,
            offset + grant.granted_at,
            {
                "forebay.request_id": grant.request.key.request_id,
                "forebay.attempt": grant.request.key.attempt,
                "forebay.tenant_id": grant.request.tenant_id,
                "forebay.worker_id": grant.worker_id,
                "forebay.batch_id": grant.batch_id,
                "forebay.queue_depth": grant.queue_depth,
            },
        )
