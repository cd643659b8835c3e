"""WorkerService on the wire: protobuf to use cases and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.rpc.session import Outbox, ServerSession
from forebay.rpc.status import from_pb_duration, to_pb_duration, to_pb_error
from forebay.worker.domain.usage import Ending
from forebay.worker.engine import Engine, Output
from forebay.worker.messages import to_pb_capacity, to_pb_engine_state, to_pb_nanoseconds, to_pb_reason
from forebay.worker.router_stream import Finish
from forebay.worker.service import DRAIN_GRACE_S, WorkerService
from forebay.worker.start_message import from_pb_start

FULL_NAME = "forebay.api.worker.v1.WorkerService"
MAX_GRACE_S = 3600.0
MAX_SESSIONS = 256


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Serves routers and operators."""

    def __init__(self, service: WorkerService, engine: Engine, peer: common_pb2.Peer, model: str, pool: str) -> None:
        self._service = service
        self._engine = engine
        self._peer = peer
        self._model = model
        self._pool = pool
        self._sessions = 0

    async def Execute(  # type: ignore[override]  # a session writes by itself instead of yielding
        self,
        request_iterator: AsyncIterator[worker_pb2.ExecuteRequest],
        context: grpc.aio.ServicerContext[worker_pb2.ExecuteRequest, worker_pb2.ExecuteResponse],
    ) -> None:
        """Runs one router's session; its attempts end with it.

        RESOURCE_EXHAUSTED TOO_MANY_SESSIONS beyond MAX_SESSIONS at a time.
        """
        if self._sessions >= MAX_SESSIONS:
            raise MeshError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_SESSIONS",
                f"the worker has {MAX_SESSIONS} sessions, its bound; end one first",
                retry_after=1.0,
            )
        self._sessions += 1
        try:
            await self._session(request_iterator, context)
        finally:
            self._sessions -= 1

    async def _session(
        self,
        request_iterator: AsyncIterator[worker_pb2.ExecuteRequest],
        context: grpc.aio.ServicerContext[worker_pb2.ExecuteRequest, worker_pb2.ExecuteResponse],
    ) -> None:
        async with ServerSession(request_iterator, context, worker_pb2.ExecuteResponse) as session:
            welcome = worker_pb2.ExecuteResponse.Welcome(worker=self._peer, window_tokens=self._engine.window_tokens)
            session.outbox.message.welcome.CopyFrom(welcome)
            session.outbox.flush()
            stream = ExecuteStream(session.outbox)
            first = True
            try:
                async for request in session:
                    if first and not request.HasField("hello"):
                        raise MeshError(
                            Code.INVALID_ARGUMENT, "HELLO_MISSING", "a session's first message must hold a hello"
                        )
                    first = False
                    self._take(stream, request)
            finally:
                self._service.session_ended(stream)

    async def DescribeWorker(
        self,
        request: worker_pb2.DescribeWorkerRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DescribeWorkerRequest, worker_pb2.DescribeWorkerResponse],
    ) -> worker_pb2.DescribeWorkerResponse:
        """Shows the worker; UNAVAILABLE while the engine is loading."""
        service = self._service
        if not service.started:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_NOT_READY", "the engine is loading; try again", retry_after=1.0)
        return worker_pb2.DescribeWorkerResponse(
            worker=self._peer,
            model=self._model,
            pool=self._pool,
            engine=self._engine.kind,
            capacity=to_pb_capacity(self._engine.capacity),
            state=to_pb_engine_state(self._engine.state(), healthy=service.healthy),
            draining=service.draining,
            steps=service.steps,
            busy_time=to_pb_nanoseconds(service.busy_ns),
        )

    async def Drain(
        self,
        request: worker_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainResponse],
    ) -> worker_pb2.DrainResponse:
        """Makes the worker drain."""
        grace = from_pb_duration(request.grace) if request.HasField("grace") else DRAIN_GRACE_S
        if not 0 <= grace <= MAX_GRACE_S:
            raise MeshError(Code.INVALID_ARGUMENT, "BAD_GRACE", f"grace must be from 0 to {MAX_GRACE_S:g} s")
        self._service.drain(grace)
        return worker_pb2.DrainResponse(running=self._service.running)

    def _take(self, stream: ExecuteStream, request: worker_pb2.ExecuteRequest) -> None:
        service = self._service
        if len(request.delivered_refs) != len(request.delivered_tokens):
            raise MeshError(
                Code.INVALID_ARGUMENT, "BAD_DELIVERED", "delivered_refs and delivered_tokens must be of one length"
            )
        for message in request.starts:
            try:
                start = from_pb_start(message)
            except MeshError as error:
                stream.refused(message.ref, error)
            else:
                service.start(stream, start)
        for cancel in request.cancels:
            budget = cancel.reason == common_pb2.FINISH_REASON_BUDGET
            service.cancel(stream, cancel.ref, Ending.BUDGET if budget else Ending.CANCELLED)
        for ref, tokens in zip(request.delivered_refs, request.delivered_tokens, strict=True):
            service.delivered(stream, ref, tokens)
        stream.flush(service.steps)


class ExecuteStream:
    """A `RouterStream` that writes straight into the session's next message: per token, it appends and does nothing else."""

    def __init__(self, outbox: Outbox[worker_pb2.ExecuteResponse]) -> None:
        self._outbox = outbox
        self._items = 0

    def output(self, ref: int, output: Output, finish: Finish | None) -> None:
        """Appends new tokens of one attempt."""
        self._items += 1
        delta = self._outbox.message.step.deltas.add(
            ref=ref,
            token_ids=output.token_ids,
            text=output.text,
            held_text=output.held_text,
            completion_tokens=output.completion_tokens,
        )
        if finish is not None:
            delta.finish.CopyFrom(_to_pb_finish(finish))

    def finished(self, ref: int, finish: Finish) -> None:
        """Appends the end of an attempt without further tokens."""
        self._items += 1
        self._outbox.message.step.deltas.add(
            ref=ref, completion_tokens=finish.completion_tokens, finish=_to_pb_finish(finish)
        )

    def refused(self, ref: int, error: MeshError) -> None:
        """Appends a refusal."""
        self._items += 1
        self._outbox.message.refusals.add(ref=ref, error=to_pb_error(error))

    def handed_over(self, ref: int, reason: str) -> None:
        """Appends a handover."""
        self._items += 1
        self._outbox.message.handovers.add(ref=ref, reason=reason)

    def flush(self, step: int) -> None:
        """Sends what was appended, if anything was."""
        if not self._items:
            return
        message = self._outbox.message
        if message.HasField("step"):
            message.step.step = step
        items, self._items = self._items, 0
        try:
            self._outbox.flush(items)
        except MeshError:
            pass  # SESSION_OVERFLOW: the session ends itself, and `Execute` tells the service


def _to_pb_finish(finish: Finish) -> worker_pb2.Finish:
    phases = finish.phases
    return worker_pb2.Finish(
        reason=to_pb_reason(finish.ending),
        error=None if finish.error is None else to_pb_error(finish.error),
        usage=common_pb2.TokenUsage(
            prompt_tokens=finish.prompt_tokens,
            cached_tokens=finish.cached_tokens,
            completion_tokens=finish.completion_tokens,
        ),
        gpu_time=to_pb_nanoseconds(finish.gpu_time_ns),
        engine_queue_time=to_pb_duration(phases.scheduled_at - phases.received_at),
        prefill_time=to_pb_duration(phases.first_token_at - phases.scheduled_at),
        decode_time=to_pb_duration(phases.last_token_at - phases.first_token_at),
    )
