"""The services around a router, played by tests over loopback: what comes is put into queues, what goes is said by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.policy.messages import to_pb_key, to_pb_tenant
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.rpc.server import RpcServer
from forebay.rpc.session import Outbox, ServerSession
from forebay.rpc.status import to_pb_duration, to_pb_error

from .samples import ACME, ACME_KEY

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """Returns what is awaited; a test that would hang fails instead."""
    return await asyncio.wait_for(awaitable, 60)


class Server:
    """A server for one fake, which can be killed and started again on its port."""

    def __init__(self, *services: tuple[Callable[[Any, grpc.aio.Server], None], object, str]) -> None:
        self._services = services
        self._server: RpcServer | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        """Listens, on the same port each time."""
        self._server = RpcServer(self.address)
        for service in self._services:
            self._server.add(*service)
        await self._server.start()
        self.address = self._server.address

    async def kill(self) -> None:
        """Breaks every call and stops listening."""
        if self._server is not None:
            await self._server.drain(0)
            self._server = None


class FakeQuota(quota_pb2_grpc.QuotaServiceServicer, quota_pb2_grpc.PolicyServiceServicer):
    """Quota: admits everything, or refuses with `refusal`, or keeps silent.

    Attributes:
        changes: of policies, to be sent.
        reserves, settles, renewals, held: what has come.
    """

    def __init__(self, tenants: list[TenantPolicy] | None = None, keys: list[KeyPolicy] | None = None) -> None:
        self.tenants = tenants if tenants is not None else [ACME]
        self.keys = keys if keys is not None else [ACME_KEY]
        self.refusal: MeshError | None = None
        self.settle_error: MeshError | None = None
        self.silent = False
        self.start_after_s = 0.0
        self.changes: asyncio.Queue[quota_pb2.WatchPoliciesResponse] = asyncio.Queue()
        self.reserves: asyncio.Queue[quota_pb2.ReserveRequest] = asyncio.Queue()
        self.settles: asyncio.Queue[quota_pb2.SettleRequest] = asyncio.Queue()
        self.renewals: asyncio.Queue[quota_pb2.RenewRequest.Lease] = asyncio.Queue()
        self.held: asyncio.Queue[quota_pb2.LocalShareHeld] = asyncio.Queue()
        self.outbox: Outbox[quota_pb2.SessionResponse] | None = None
        name = "forebay.api.quota.v1."
        self.server = Server(
            (quota_pb2_grpc.add_QuotaServiceServicer_to_server, self, name + "QuotaService"),
            (quota_pb2_grpc.add_PolicyServiceServicer_to_server, self, name + "PolicyService"),
        )

    async def Session(self, request_iterator: AsyncIterator[quota_pb2.SessionRequest], context: Any) -> None:
        async with ServerSession(request_iterator, context, quota_pb2.SessionResponse) as session:
            self.outbox = session.outbox
            session.outbox.message.welcome.lease.CopyFrom(to_pb_duration(30))
            session.outbox.flush()
            async for request in session:
                if request.HasField("local_share_held"):
                    self.held.put_nowait(request.local_share_held)
                for reserve in request.reserves:
                    self.reserves.put_nowait(reserve.request)
                    if not self.silent:
                        self._answer(session.outbox, reserve)
                for settle in request.settles:
                    self.settles.put_nowait(settle.request)
                    result = session.outbox.message.settles.add(seq=settle.seq)
                    if self.settle_error is None:
                        result.settled.applied = True
                    else:
                        result.error.CopyFrom(to_pb_error(self.settle_error))
                for lease in request.renewals:
                    self.renewals.put_nowait(lease)
                session.outbox.flush()

    def _answer(self, outbox: Outbox[quota_pb2.SessionResponse], reserve: quota_pb2.SessionRequest.ReserveCall) -> None:
        result = outbox.message.reserves.add(seq=reserve.seq)
        if self.refusal is not None:
            result.error.CopyFrom(to_pb_error(self.refusal))
        else:
            result.reservation.request_id = reserve.request.request_id
            result.reservation.start_after.CopyFrom(to_pb_duration(self.start_after_s))

    async def WatchPolicies(
        self, request: quota_pb2.WatchPoliciesRequest, context: Any
    ) -> AsyncIterator[quota_pb2.WatchPoliciesResponse]:
        assert request.kind == quota_pb2.WATCHER_KIND_ROUTER
        yield quota_pb2.WatchPoliciesResponse(
            version=1,
            snapshot_begin=True,
            snapshot_end=True,
            tenants=[to_pb_tenant(tenant) for tenant in self.tenants],
            keys=[to_pb_key(key) for key in self.keys],
        )
        while True:
            yield await self.changes.get()


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """A scheduler that grants each submission at once, while `workers` has one that is not excluded.

    Attributes:
        leader: where another leads; empty while this one does.
        under_pressure: whether it shortens what may be shortened.
        hellos: of each session, the message that says what is held.
        submissions, cancellations, declines: what has come.
    """

    def __init__(self, *workers: FakeWorker) -> None:
        self.workers = list(workers)
        self.leader = ""
        self.under_pressure = False
        self.hellos: asyncio.Queue[scheduler_pb2.ScheduleRequest] = asyncio.Queue()
        self.submissions: asyncio.Queue[scheduler_pb2.Submission] = asyncio.Queue()
        self.cancellations: asyncio.Queue[scheduler_pb2.AttemptRef] = asyncio.Queue()
        self.declines: asyncio.Queue[scheduler_pb2.AttemptRef] = asyncio.Queue()
        self.outbox: Outbox[scheduler_pb2.ScheduleResponse] | None = None
        name = "forebay.api.scheduler.v1.SchedulerService"
        self.server = Server((scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self, name))

    async def Schedule(self, request_iterator: AsyncIterator[scheduler_pb2.ScheduleRequest], context: Any) -> None:
        async with ServerSession(request_iterator, context, scheduler_pb2.ScheduleResponse) as session:
            if self.leader:
                session.outbox.message.welcome.leader_address = self.leader
                session.outbox.flush()
                return
            self.outbox = session.outbox
            session.outbox.message.welcome.epoch = 1
            session.outbox.flush()
            async for request in session:
                if request.held_complete:
                    self.hellos.put_nowait(request)
                for submission in request.submissions:
                    self.submissions.put_nowait(submission)
                    self.grant(submission)
                for ref in request.cancellations:
                    self.cancellations.put_nowait(ref)
                for ref in request.declines:
                    self.declines.put_nowait(ref)

    def grant(self, submission: scheduler_pb2.Submission) -> None:
        """Grants on the first worker that is not excluded, if there is one."""
        worker = next((worker for worker in self.workers if worker.id not in submission.excluded_workers), None)
        if worker is None:
            return
        assert self.outbox is not None
        shortens = self.under_pressure and 0 < submission.least_max_tokens < submission.max_tokens
        max_tokens = submission.least_max_tokens if shortens else submission.max_tokens
        self.outbox.message.grants.add(
            ref=submission.ref,
            worker_id=worker.id,
            worker_incarnation=worker.incarnation,
            worker_address=worker.server.address,
            epoch=1,
            batch_id=1,
            tenant_id=submission.tenant_id,
            prompt_tokens=submission.prompt_tokens,
            max_tokens=max_tokens,
            kv_tokens=submission.prompt_tokens + max_tokens,
            measures=[scheduler_pb2.MEASURE_SHORTENED] if shortens else [],
            expires_in=to_pb_duration(2),
        )
        self.outbox.flush()

    def reject(self, ref: scheduler_pb2.AttemptRef, error: MeshError) -> None:
        """Rejects a submission."""
        assert self.outbox is not None
        self.outbox.message.rejections.add(ref=ref, error=to_pb_error(error))
        self.outbox.flush()


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """A worker whose engine is the test.

    Attributes:
        starts, cancels: what has come.
        delivered: ref and tokens of each report.
    """

    def __init__(self, worker_id: str = "w1", window_tokens: int = 0) -> None:
        self.id = worker_id
        self.incarnation = 1
        self.window_tokens = window_tokens
        self.starts: asyncio.Queue[worker_pb2.Start] = asyncio.Queue()
        self.cancels: asyncio.Queue[worker_pb2.ExecuteRequest.Cancel] = asyncio.Queue()
        self.delivered: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self.sessions = 0
        self._broken: asyncio.Future[None] | None = None
        self.outbox: Outbox[worker_pb2.ExecuteResponse] | None = None
        name = "forebay.api.worker.v1.WorkerService"
        self.server = Server((worker_pb2_grpc.add_WorkerServiceServicer_to_server, self, name))

    async def Execute(self, request_iterator: AsyncIterator[worker_pb2.ExecuteRequest], context: Any) -> None:
        async with ServerSession(request_iterator, context, worker_pb2.ExecuteResponse) as session:
            self.sessions += 1
            self._broken = asyncio.get_running_loop().create_future()
            self.outbox = session.outbox
            session.outbox.message.welcome.CopyFrom(
                worker_pb2.ExecuteResponse.Welcome(
                    worker=common_pb2.Peer(id=self.id, incarnation=self.incarnation), window_tokens=self.window_tokens
                )
            )
            session.outbox.flush()
            reading = asyncio.ensure_future(self._read(session))
            try:
                await asyncio.wait({reading, self._broken}, return_when=asyncio.FIRST_COMPLETED)
                await (self._broken if self._broken.done() else reading)
            finally:
                reading.cancel()

    async def _read(self, session: ServerSession[worker_pb2.ExecuteRequest, worker_pb2.ExecuteResponse]) -> None:
        async for request in session:
            for start in request.starts:
                self.starts.put_nowait(start)
            for cancel in request.cancels:
                self.cancels.put_nowait(cancel)
            for ref, tokens in zip(request.delivered_refs, request.delivered_tokens, strict=True):
                self.delivered.put_nowait((ref, tokens))

    def say(self, ref: int, position: int, tokens: list[int], text: str = "", held: str = "") -> None:
        """Yields tokens of one stream from `position` on."""
        assert self.outbox is not None
        self.outbox.message.step.deltas.add(
            ref=ref, token_ids=tokens, text=text, held_text=held, completion_tokens=position + len(tokens)
        )
        self.outbox.flush()

    def finish(
        self,
        start: worker_pb2.Start,
        tokens: int,
        reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_STOP,
    ) -> None:
        """Ends an attempt with `tokens` completion tokens in all."""
        assert self.outbox is not None
        usage = common_pb2.TokenUsage(
            prompt_tokens=len(start.prompt_token_ids), cached_tokens=1, completion_tokens=tokens
        )
        finish = worker_pb2.Finish(reason=reason, usage=usage, gpu_time=to_pb_duration(0.25))
        self.outbox.message.step.deltas.add(ref=start.ref, completion_tokens=tokens, finish=finish)
        self.outbox.flush()

    def break_off(self) -> None:
        """Breaks the session, and nothing else."""
        assert self._broken is not None
        self._broken.set_exception(MeshError(Code.UNAVAILABLE, "BROKEN", "the session breaks"))

    def refuse(self, ref: int, error: MeshError) -> None:
        """Turns a payload away."""
        assert self.outbox is not None
        self.outbox.message.refusals.add(ref=ref, error=to_pb_error(error))
        self.outbox.flush()

    def hand_over(self, ref: int, reason: str = "DRAINING") -> None:
        """Asks for a continuation."""
        assert self.outbox is not None
        self.outbox.message.handovers.add(ref=ref, reason=reason)
        self.outbox.flush()


class FakeMetering(metering_pb2_grpc.MeteringServiceServicer):
    """Metering with a short ledger; `following` is set while a stream that follows is open.

    Attributes:
        filters: of the calls that have come.
        events: reports that have come, each as often as it came.
        acknowledges: whether it says so.
        entries: to be sent on a stream that follows.
        window: reports that may be unacknowledged at a time.
    """

    def __init__(self) -> None:
        self.filters: list[metering_pb2.UsageFilter] = []
        self.cursors: list[str] = []
        self.events: asyncio.Queue[metering_pb2.UsageEvent] = asyncio.Queue()
        self.acknowledges = True
        self.window = 100
        self.entries: asyncio.Queue[metering_pb2.LedgerEntry] = asyncio.Queue()
        self.following = asyncio.Event()
        self.left = asyncio.Event()
        name = "forebay.api.metering.v1.MeteringService"
        self.server = Server((metering_pb2_grpc.add_MeteringServiceServicer_to_server, self, name))

    async def Record(self, request_iterator: AsyncIterator[metering_pb2.RecordRequest], context: Any) -> None:
        async with ServerSession(request_iterator, context, metering_pb2.RecordResponse) as session:
            session.outbox.message.welcome.max_unacknowledged = self.window
            session.outbox.flush()
            last = 0
            async for request in session:
                for numbered in request.events:
                    assert numbered.seq == last + 1
                    last = numbered.seq
                    self.events.put_nowait(numbered.event)
                assert self.acknowledges or last <= self.window
                if self.acknowledges:
                    session.outbox.message.acknowledged_seq = last
                    session.outbox.flush()

    async def StreamUsage(
        self, request: metering_pb2.StreamUsageRequest, context: Any
    ) -> AsyncIterator[metering_pb2.StreamUsageResponse]:
        self.filters.append(request.filter)
        self.cursors.append(request.cursor)
        yield metering_pb2.StreamUsageResponse(entries=[metering_pb2.LedgerEntry(position=1)], cursor="v1:1")
        if request.follow:
            self.following.set()
            try:
                while True:
                    yield metering_pb2.StreamUsageResponse(entries=[await self.entries.get()])
            finally:
                self.left.set()

    async def SumUsage(self, request: metering_pb2.SumUsageRequest, context: Any) -> metering_pb2.SumUsageResponse:
        self.filters.append(request.filter)
        return metering_pb2.SumUsageResponse(totals=[metering_pb2.UsageTotal(requests=3)])
