"""The worker's peers over loopback, each as small as its contract allows, and a router that drives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.rpc.server import RpcServer

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


async def within(what: Awaitable[T], seconds: float = 60.0) -> T:
    """Awaits something that must come; a test that would hang fails instead."""
    async with asyncio.timeout(seconds):
        return await what


class Policies(quota_pb2_grpc.PolicyServiceServicer):
    """Sends one snapshot, and what a test adds."""

    def __init__(self, *tenants: str) -> None:
        self.version = 1
        self.tenants = list(tenants)
        self.changes: asyncio.Queue[str] = asyncio.Queue()

    async def WatchPolicies(
        self, request: quota_pb2.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[quota_pb2.WatchPoliciesResponse]:
        assert request.kind == quota_pb2.WATCHER_KIND_WORKER
        yield quota_pb2.WatchPoliciesResponse(
            version=1, snapshot_begin=True, snapshot_end=True, tenants=map(self._policy, self.tenants)
        )
        while True:
            tenant = await self.changes.get()
            self.version += 1
            yield quota_pb2.WatchPoliciesResponse(version=self.version, tenants=[self._policy(tenant)])

    @staticmethod
    def _policy(tenant: str) -> quota_pb2.TenantPolicy:
        return quota_pb2.TenantPolicy(tenant_id=tenant, isolation_key=tenant.encode().ljust(32, b"."))


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Keeps what workers say, and says what a test says."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[scheduler_pb2.AttachRequest] = asyncio.Queue()
        self.responses: asyncio.Queue[scheduler_pb2.AttachResponse | None] = asyncio.Queue()

    async def Attach(
        self, request_iterator: AsyncIterator[scheduler_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        async def read() -> None:
            async for request in request_iterator:
                self.requests.put_nowait(request)

        reader = asyncio.create_task(read())
        try:
            yield scheduler_pb2.AttachResponse(welcome=scheduler_pb2.Welcome(epoch=3))
            while (response := await self.responses.get()) is not None:
                yield response
        finally:
            reader.cancel()

    def say(self, response: scheduler_pb2.AttachResponse) -> None:
        self.responses.put_nowait(response)

    def end_session(self) -> None:
        self.responses.put_nowait(None)

    async def heard_with(self, field: str) -> scheduler_pb2.AttachRequest:
        """Returns the next message in which a field is not empty."""
        async with asyncio.timeout(60):
            while True:
                request = await self.requests.get()
                if any(descriptor.name == field for descriptor, _ in request.ListFields()):
                    return request

    async def heard(self, field: str) -> Any:
        """Returns the next non-empty value of a field."""
        return getattr(await self.heard_with(field), field)


class Metering(metering_pb2_grpc.MeteringServiceServicer):
    """Keeps every event that it is sent; acknowledges by itself while `acknowledging`."""

    def __init__(self) -> None:
        self.acknowledging = True
        self.window = 100
        self.events: list[metering_pb2.UsageEvent] = []
        self.sessions: list[list[int]] = []
        self._came = asyncio.Event()
        self._answers: asyncio.Queue[int | None] = asyncio.Queue()

    async def Record(
        self, request_iterator: AsyncIterator[metering_pb2.RecordRequest], context: Context
    ) -> AsyncIterator[metering_pb2.RecordResponse]:
        numbers: list[int] = []
        self.sessions.append(numbers)
        self._came.set()
        self._answers = answers = asyncio.Queue()

        async def read() -> None:
            async for request in request_iterator:
                numbers.extend(numbered.seq for numbered in request.events)
                self.events += [numbered.event for numbered in request.events]
                self._came.set()
                if self.acknowledging and numbers:
                    answers.put_nowait(numbers[-1])

        reader = asyncio.create_task(read())
        try:
            welcome = metering_pb2.RecordResponse.Welcome(max_unacknowledged=self.window)
            yield metering_pb2.RecordResponse(welcome=welcome)
            while (seq := await answers.get()) is not None:
                yield metering_pb2.RecordResponse(acknowledged_seq=seq)
        finally:
            reader.cancel()

    def acknowledge(self, seq: int) -> None:
        self._answers.put_nowait(seq)

    def end_session(self) -> None:
        self._answers.put_nowait(None)

    async def came(self, count: int) -> list[metering_pb2.UsageEvent]:
        """Returns the events once there are `count`, repeats counted."""
        return await self._at_least(count, self.events)

    async def opened(self, count: int) -> None:
        """Returns once there have been `count` sessions."""
        await self._at_least(count, self.sessions)

    async def _at_least(self, count: int, what: list[T]) -> list[T]:
        async with asyncio.timeout(60):
            while len(what) < count:
                self._came.clear()
                await self._came.wait()
        return what


class Router:
    """One Execute session."""

    def __init__(self, channel: grpc.aio.Channel, worker: common_pb2.Peer, name: str = "router-1") -> None:
        self._call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
        self._worker = worker
        self._name = name

    async def open(self) -> worker_pb2.ExecuteResponse.Welcome:
        hello = worker_pb2.ExecuteRequest.Hello(router=common_pb2.Peer(id=self._name, incarnation=1))
        await self.send(worker_pb2.ExecuteRequest(hello=hello))
        return (await self.read()).welcome

    async def send(self, request: worker_pb2.ExecuteRequest) -> None:
        await self._call.write(request)

    async def start(self, *starts: worker_pb2.Start) -> None:
        await self.send(worker_pb2.ExecuteRequest(starts=starts))

    async def cancel(
        self, ref: int, reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_CANCELLED
    ) -> None:
        await self.send(worker_pb2.ExecuteRequest(cancels=[worker_pb2.ExecuteRequest.Cancel(ref=ref, reason=reason)]))

    async def read(self) -> worker_pb2.ExecuteResponse:
        response = await within(self._call.read())
        assert isinstance(response, worker_pb2.ExecuteResponse), "the session ended"
        return response

    async def ended(self) -> grpc.StatusCode:
        """Returns the session's status once it has ended."""
        return await within(self._call.code())

    def break_off(self) -> None:
        self._call.cancel()

    def payload(self, ref: int, tenant: str = "acme", **rest: Any) -> worker_pb2.Start:
        """As the function of that name, for this worker."""
        return payload(self._worker, ref, tenant, **rest)


def payload(
    worker: common_pb2.Peer, ref: int, tenant: str = "acme", *, attempt: int = 1, max_tokens: int = 20, **grant: Any
) -> worker_pb2.Start:
    """A payload of 10 tokens with a grant that fits; its request's number is its ref."""
    good = scheduler_pb2.Grant(
        ref=scheduler_pb2.AttemptRef(request_id=f"{ref:032x}", attempt=attempt),
        worker_id=worker.id,
        worker_incarnation=worker.incarnation,
        epoch=3,
        batch_id=1,
        tenant_id=tenant,
        prompt_tokens=10,
        max_tokens=max_tokens,
        kv_tokens=30,
    )
    good.MergeFrom(scheduler_pb2.Grant(**grant))
    return worker_pb2.Start(
        ref=ref,
        grant=good,
        prompt_token_ids=range(300, 310),
        sampling=common_pb2.Sampling(max_tokens=max_tokens, seed=1, temperature=0.0, ignore_eos=True),
        attribution=worker_pb2.Attribution(tenant_id=tenant, key_id="key", model="tiny"),
    )


async def serve(add: Any, servicer: object, name: str, listen: str = "127.0.0.1:0") -> RpcServer:
    """Starts a server with one service."""
    server = RpcServer(listen)
    server.add(add, servicer, name)
    await server.start()
    return server
