"""The scheduler on the wire: sessions with routers and workers, and the view for operators."""

import itertools
from collections.abc import AsyncIterator

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.errors import Code, FieldViolation, MeshError
from forebay.rpc.session import Outbox, ServerSession
from forebay.scheduler.domain.decisions import Batch, Eviction, Grant, Rejection, Withdrawal
from forebay.scheduler.domain.overview import waiting
from forebay.scheduler.leadership import Leadership
from forebay.scheduler.messages import (
    from_pb_engine_state,
    from_pb_peer,
    from_pb_ref,
    from_pb_register,
    from_pb_running,
    from_pb_submission,
    to_pb_batch,
    to_pb_grant,
    to_pb_pool,
    to_pb_ref,
    to_pb_rejection,
)
from forebay.scheduler.service import RouterSession, SchedulerService
from forebay.telemetry.logs import get_logger

DEFAULT_PAGE = 100
MAX_PAGE = 1_000

log = get_logger("scheduler")

_BOUND_STATES = (scheduler_pb2.HeldAttempt.STATE_GRANTED, scheduler_pb2.HeldAttempt.STATE_RUNNING)


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """SchedulerService over the term that this replica leads in; a follower's sessions say who leads, and end."""

    def __init__(self, leadership: Leadership, peer: common_pb2.Peer) -> None:
        """Serves `leadership`; `peer` is this replica, as it introduces itself."""
        self._leadership = leadership
        self._peer = peer
        self._sessions = itertools.count(1)

    async def Schedule(  # type: ignore[override]  # a session writes by itself instead of yielding
        self,
        request_iterator: AsyncIterator[scheduler_pb2.ScheduleRequest],
        context: grpc.aio.ServicerContext[scheduler_pb2.ScheduleRequest, scheduler_pb2.ScheduleResponse],
    ) -> None:
        """A router's session."""
        async with ServerSession(request_iterator, context, scheduler_pb2.ScheduleResponse) as session:
            messages = aiter(session)
            first = await anext(messages, None)
            if first is None:
                return
            life = from_pb_peer(first.hello.router)
            self._leadership.heard(first.hello.highest_epoch)
            router = f"{life[0]}/{next(self._sessions)}"
            self._welcome(session.outbox)
            if (term := self._leadership.term) is None:
                return
            with term.session(session.fail):
                term.router_opened(router, RouterSession(life, _RouterLink(session.outbox), session.fail))
                log.info("router connected", router=router)
                try:
                    self._hear_router(term, router, first)
                    async for message in messages:
                        self._hear_router(term, router, message)
                finally:
                    term.router_closed(router)
                    log.info("router gone", router=router)

    async def Attach(  # type: ignore[override]  # a session writes by itself instead of yielding
        self,
        request_iterator: AsyncIterator[scheduler_pb2.AttachRequest],
        context: grpc.aio.ServicerContext[scheduler_pb2.AttachRequest, scheduler_pb2.AttachResponse],
    ) -> None:
        """A worker's session."""
        async with ServerSession(request_iterator, context, scheduler_pb2.AttachResponse) as session:
            messages = aiter(session)
            first = await anext(messages, None)
            if first is None:
                return
            self._leadership.heard(first.register.highest_epoch)
            if (term := self._leadership.term) is None:
                self._welcome(session.outbox)
                return
            info = from_pb_register(first.register)
            link = _WorkerLink(session.outbox)
            with term.session(session.fail):
                term.worker_opened(info, link)
                self._welcome(session.outbox)
                log.info(
                    "worker attached", worker=info.id, incarnation=info.incarnation, model=info.model, pool=info.pool
                )
                try:
                    self._hear_worker(term, info.id, first)
                    async for message in messages:
                        if not term.worker_speaks(info.id, link):
                            raise MeshError(Code.ABORTED, "SUPERSEDED", f"{info.id} has opened another session since")
                        self._hear_worker(term, info.id, message)
                finally:
                    term.worker_closed(info.id, link)
                    log.info("worker gone", worker=info.id, incarnation=info.incarnation)

    async def DescribePools(
        self,
        request: scheduler_pb2.DescribePoolsRequest,
        context: grpc.aio.ServicerContext[scheduler_pb2.DescribePoolsRequest, scheduler_pb2.DescribePoolsResponse],
    ) -> scheduler_pb2.DescribePoolsResponse:
        """One page of the leader's pools; its token is the name and model of the page's last pool."""
        term = self._leadership.leading()
        core, now = term.core, term.now
        if request.page_size > MAX_PAGE:
            raise MeshError(
                Code.INVALID_ARGUMENT,
                "BAD_PAGE_SIZE",
                f"ask for 1 to {MAX_PAGE} pools at a time",
                field_violations=[FieldViolation("page_size", f"1 to {MAX_PAGE}")],
            )
        name, _, model = request.page_token.partition("/")
        pools = [
            pool
            for pool in core.pools
            if (not request.pool or pool.name == request.pool)
            and (not request.page_token or (pool.name, pool.model) > (name, model))
        ]
        size = request.page_size or DEFAULT_PAGE
        page = pools[:size]
        waits = waiting(core, now)
        return scheduler_pb2.DescribePoolsResponse(
            pools=[to_pb_pool(pool, waits.get(pool, {}).values(), now) for pool in page],
            next_page_token=f"{page[-1].name}/{page[-1].model}" if len(pools) > size else "",
        )

    def _welcome(self, outbox: Outbox[scheduler_pb2.ScheduleResponse] | Outbox[scheduler_pb2.AttachResponse]) -> None:
        leadership = self._leadership
        outbox.message.welcome.CopyFrom(
            scheduler_pb2.Welcome(scheduler=self._peer, epoch=leadership.epoch, leader_address=leadership.leader)
        )
        outbox.flush()

    @staticmethod
    def _hear_router(term: SchedulerService, router: str, message: scheduler_pb2.ScheduleRequest) -> None:
        """Takes one message in, its parts in the order of their numbers."""
        core, now = term.core, term.now
        for submission in message.submissions:
            key = from_pb_ref(submission.ref)
            try:
                core.submit(from_pb_submission(submission), router, now)
            except MeshError as error:
                core.refuse(key, router, error)
        for ref in message.cancellations:
            core.cancel(from_pb_ref(ref))
        for ref in message.declines:
            core.decline(from_pb_ref(ref))
        not_taken: list[MeshError] = []
        for held in message.held:
            if held.state in _BOUND_STATES:
                try:
                    core.claim(from_pb_submission(held.submission), router, held.worker_id)
                except MeshError as error:
                    not_taken.append(error)
        if not_taken:
            # Such an attempt still runs and its room still counts; only its service is charged to nobody.
            log.warning("held attempts not taken", router=router, attempts=len(not_taken), first=str(not_taken[0]))
        if message.held_complete:
            term.router_reported(router.rpartition("/")[0])
        term.wake()

    @staticmethod
    def _hear_worker(term: SchedulerService, worker_id: str, message: scheduler_pb2.AttachRequest) -> None:
        """Takes one message in, its parts in the order of their numbers."""
        core = term.core
        core.worker_running(worker_id, map(from_pb_running, message.running))
        if message.running_complete:
            term.worker_reported(worker_id)
        for progress in message.progress:
            core.progress(worker_id, from_pb_ref(progress.ref), progress.generated_tokens, progress.prefilled)
        for departure in message.departures:
            core.departure(
                worker_id,
                from_pb_ref(departure.ref),
                generated_tokens=departure.generated_tokens,
                cached_tokens=departure.cached_tokens,
                started=departure.started,
            )
        for ref in message.expired:
            core.entry_expired(worker_id, from_pb_ref(ref))
        if message.HasField("engine"):
            core.engine_state(worker_id, from_pb_engine_state(message.engine))
        if message.draining:
            core.worker_draining(worker_id)
        term.wake()


class _RouterLink:
    """What a tick has to say to one router, as one message."""

    def __init__(self, outbox: Outbox[scheduler_pb2.ScheduleResponse]) -> None:
        self._outbox = outbox

    def __call__(self, grants: list[Grant], rejections: list[Rejection], now: float) -> None:
        message = self._outbox.message
        message.grants.extend(to_pb_grant(grant, now) for grant in grants)
        message.rejections.extend(to_pb_rejection(rejection.key, rejection.error) for rejection in rejections)
        _flush(self._outbox, len(grants) + len(rejections))


class _WorkerLink:
    """What a tick has to say to one worker, as one message."""

    def __init__(self, outbox: Outbox[scheduler_pb2.AttachResponse]) -> None:
        self._outbox = outbox

    def __call__(
        self, batches: list[Batch], withdrawals: list[Withdrawal], evictions: list[Eviction], now: float
    ) -> None:
        message = self._outbox.message
        message.batches.extend(to_pb_batch(batch, now) for batch in batches)
        message.withdrawals.extend(to_pb_ref(withdrawal.key) for withdrawal in withdrawals)
        message.evictions.extend(to_pb_ref(eviction.key) for eviction in evictions)
        _flush(self._outbox, sum(len(batch.grants) for batch in batches) + len(withdrawals) + len(evictions))


def _flush(outbox: Outbox[scheduler_pb2.ScheduleResponse] | Outbox[scheduler_pb2.AttachResponse], items: int) -> None:
    try:
        outbox.flush(items)
    except MeshError:
        pass  # SESSION_OVERFLOW: the session is being ended, and its handler tells the core
