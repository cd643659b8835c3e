"""Servers, errors and sessions over a real loopback connection. The worker's contract serves as the example."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.config import ConfigError
from forebay.errors import Code, FieldViolation, MeshError, QuotaViolation
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.session import Outbox, ServerSession, SessionClient
from forebay.rpc.status import (
    from_pb_duration,
    from_pb_error,
    from_rpc_error,
    from_status,
    to_pb_duration,
    to_pb_error,
    to_status,
)
from forebay.telemetry import metrics

NAME = "forebay.api.worker.v1.WorkerService"

texts = st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=12)
counts = st.integers(0, 2**62)
mesh_errors = st.builds(
    MeshError,
    st.sampled_from(Code),
    texts,
    texts,
    retry_after=st.none() | st.integers(0, 10**6).map(lambda eighths: eighths / 8),
    quota_violations=st.lists(st.builds(QuotaViolation, texts, texts, counts, counts, counts), max_size=3),
    field_violations=st.lists(st.builds(FieldViolation, texts, texts), max_size=3),
    metadata=st.dictionaries(texts.filter(lambda key: not key.startswith("quota.")), texts, max_size=3),
)


def facts(error: MeshError) -> dict[str, object]:
    return {name: getattr(error, name) for name in vars(error)}


@given(mesh_errors)
def test_an_error_crosses_the_wire_unchanged(error: MeshError) -> None:
    assert facts(from_status(to_status(error))) == facts(error)
    assert facts(from_pb_error(to_pb_error(error))) == facts(error)


@given(st.floats(-1e6, 1e6))
def test_a_duration_keeps_nanoseconds(seconds: float) -> None:
    assert from_pb_duration(to_pb_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


class Servicer(worker_pb2_grpc.WorkerServiceServicer):
    """A worker whose answers each test chooses."""

    def __init__(self) -> None:
        self.describe: Callable[[], Awaitable[Any]] | None = None
        self.execute: Callable[[ServerSession[Any, Any]], Awaitable[None]] | None = None
        self.limit = 1000

    async def DescribeWorker(self, request: Any, context: Any) -> Any:
        assert self.describe
        return await self.describe()

    async def Execute(self, requests: Any, context: Any) -> None:
        async with ServerSession(requests, context, worker_pb2.ExecuteResponse, self.limit) as session:
            session.outbox.message.welcome.window_tokens = 7
            session.outbox.flush()
            assert self.execute
            await self.execute(session)


@pytest.fixture
async def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def server(servicer: Servicer) -> AsyncIterator[RpcServer]:
    server = RpcServer("127.0.0.1:0")
    server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, servicer, NAME)
    await server.start()
    yield server
    await server.drain(0)


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with connect(server.address, caller="test") as channel:
        yield channel


async def describe_error(channel: grpc.aio.Channel, **options: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker_pb2_grpc.WorkerServiceStub(channel).DescribeWorker(worker_pb2.DescribeWorkerRequest(), **options)
    return from_rpc_error(caught.value)


async def test_a_typed_error_reaches_the_client(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def refuse() -> None:
        raise MeshError(Code.UNAVAILABLE, "DRAINING", "try another worker", retry_after=1.5)

    servicer.describe = refuse
    error = await describe_error(channel)
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "DRAINING", 1.5)


async def test_a_bug_is_internal_and_tells_nothing(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def fail() -> None:
        raise ValueError("a secret of the implementation")

    servicer.describe = fail
    error = await describe_error(channel)
    assert (error.code, error.reason) == (Code.INTERNAL, "BUG")
    assert "secret" not in error.message


async def test_a_call_without_time_is_refused_before_the_handler(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    await channel.channel_ready()
    error = await describe_error(channel, timeout=0.01)
    assert error.code is Code.DEADLINE_EXCEEDED


async def test_malformed_messages_are_bad_input(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def read(session: ServerSession[Any, Any]) -> None:
        async for _ in session:
            pass

    servicer.execute = read
    unary = channel.unary_unary(f"/{NAME}/DescribeWorker", request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(b"\xff\xff\xff")
    assert from_rpc_error(caught.value).reason == "MALFORMED_MESSAGE"
    stream = channel.stream_stream(f"/{NAME}/Execute", request_serializer=None, response_deserializer=None)()
    await stream.write(b"")
    await stream.write(b"\xff\xff\xff")
    assert (await end_of(stream)).reason == "MALFORMED_MESSAGE"


async def test_health_follows_the_service(server: RpcServer, channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME))
    seen = [(await watch.read()).status]
    server.set_serving(NAME, True)
    seen.append((await watch.read()).status)
    whole = await health.Check(health_pb2.HealthCheckRequest())
    watch.cancel()
    assert seen == [health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING]
    assert whole.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_port_in_use_is_a_configuration_error(server: RpcServer) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        RpcServer(server.address)


async def test_a_connection_too_many_is_closed() -> None:
    server = RpcServer("127.0.0.1:0", max_connections=1)
    await server.start()
    health = health_pb2.HealthCheckRequest()
    async with connect(server.address, caller="one") as one, connect(server.address, caller="two") as two:
        await health_pb2_grpc.HealthStub(one).Check(health, timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(two).Check(health, timeout=60)
    await server.drain(0)
    assert from_rpc_error(caught.value).code is Code.UNAVAILABLE


async def test_what_gathers_during_a_write_leaves_as_one_message() -> None:
    sent: list[worker_pb2.ExecuteRequest] = []
    gate = asyncio.Event()

    async def write(message: worker_pb2.ExecuteRequest) -> None:
        sent.append(message)
        await gate.wait()

    outbox = Outbox(worker_pb2.ExecuteRequest, write)
    writer = asyncio.create_task(outbox.run())
    for ref in range(3):
        outbox.message.delivered_refs.append(ref)
        outbox.flush()
    await asyncio.sleep(0)
    for ref in range(3, 10):
        outbox.message.delivered_refs.append(ref)
        outbox.flush()
        await asyncio.sleep(0)
    gate.set()
    while len(sent) < 2:
        await asyncio.sleep(0)
    writer.cancel()
    assert [list(message.delivered_refs) for message in sent] == [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]


class Handler:
    """Keeps what a session client tells it."""

    def __init__(self) -> None:
        self.opened_count = 0
        self.responses: asyncio.Queue[worker_pb2.ExecuteResponse] = asyncio.Queue()
        self.ends: asyncio.Queue[MeshError] = asyncio.Queue()

    def opened(self, outbox: Outbox[Any]) -> None:
        self.opened_count += 1
        outbox.message.hello.router.id = "router-1"
        outbox.flush()

    def received(self, response: worker_pb2.ExecuteResponse) -> None:
        self.responses.put_nowait(response)

    def closed(self, error: MeshError) -> None:
        self.ends.put_nowait(error)


async def test_a_session_reconnects_and_greets_again(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def once(session: ServerSession[Any, Any]) -> None:
        async for request in session:
            assert request.hello.router.id == "router-1"
            return

    servicer.execute = once
    handler = Handler()
    client = SessionClient(
        "test", worker_pb2_grpc.WorkerServiceStub(channel).Execute, worker_pb2.ExecuteRequest, handler
    )
    running = asyncio.create_task(client.run())
    for _ in range(2):
        assert (await handler.responses.get()).welcome.window_tokens == 7
        assert (await handler.ends.get()).reason == "SESSION_ENDED"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert handler.opened_count >= 2
    assert client.outbox is None or not client.connected


async def test_a_peer_that_says_when_to_come_back_is_left_alone_until_then(
    servicer: Servicer, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(session: ServerSession[Any, Any]) -> None:
        raise MeshError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", "the disk is full", retry_after=1.5)

    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    servicer.execute = fail
    handler = Handler()
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    ended = metrics.SESSION_RECONNECTS.labels("test")
    before = ended._value.get()
    client = SessionClient("test 127.0.0.1:1", stub.Execute, worker_pb2.ExecuteRequest, handler)
    running = asyncio.create_task(client.run())
    for _ in range(2):
        assert (await handler.ends.get()).reason == "LEDGER_UNAVAILABLE"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert pauses[0] == 1.5
    assert ended._value.get() > before, "an address is no label: there is no end of them"


async def test_a_peer_that_is_not_the_one_sought_was_never_connected(
    servicer: Servicer, channel: grpc.aio.Channel
) -> None:
    async def stay(session: ServerSession[Any, Any]) -> None:
        async for _ in session:
            pass

    class Choosy(Handler):
        def received(self, response: worker_pb2.ExecuteResponse) -> None:
            raise MeshError(Code.FAILED_PRECONDITION, "NOT_LEADER", "another is")

    servicer.execute = stay
    handler = Choosy()
    client = SessionClient(
        "test", worker_pb2_grpc.WorkerServiceStub(channel).Execute, worker_pb2.ExecuteRequest, handler
    )
    with capture_logs() as logs:
        running = asyncio.create_task(client.run())
        for _ in range(3):
            assert (await handler.ends.get()).reason == "NOT_LEADER"
            assert not client.connected
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (line,) = logs
    assert (line["event"], line["reason"], line["message"]) == ("session not opened", "NOT_LEADER", "another is")


async def test_a_session_can_be_ended_from_outside(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def stay(session: ServerSession[Any, Any]) -> None:
        asyncio.get_running_loop().call_soon(
            session.fail, MeshError(Code.FAILED_PRECONDITION, "TERM_OVER", "it is over")
        )
        async for _ in session:
            pass

    servicer.execute = stay
    call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
    assert (await end_of(call)).reason == "TERM_OVER"


async def end_of(call: Any) -> MeshError:
    """Reads a stream to its end; returns the error that it ends with."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the stream ended well")


async def test_a_peer_that_stops_reading_loses_its_session(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    ended: asyncio.Queue[MeshError] = asyncio.Queue()

    async def flood(session: ServerSession[Any, Any]) -> None:
        try:
            while True:  # until the peer's flow control holds the writer up, and what gathers overflows
                session.outbox.message.handovers.add(reason="x" * 1_000)
                session.outbox.flush()
                await asyncio.sleep(0)
        except MeshError as error:
            ended.put_nowait(error)
        # As owners do that swallow the overflow: the session has to end all the same.
        async for _ in session:
            pass

    servicer.execute = flood
    call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
    await call.write(worker_pb2.ExecuteRequest())
    assert (await ended.get()).reason == "SESSION_OVERFLOW"
    assert (await end_of(call)).reason == "SESSION_OVERFLOW"


class BrokenWrites:
    """gRPC's call below Python, as it is when the server ends the stream while the client writes.

    From `after` writes on each fails, as it does once the transport knows that the stream has ended; what the server has sent
    until then, the status last, is still to be read.
    """

    def __init__(self, call: Any, after: int, broke: Callable[[], None]) -> None:
        self._call = call
        self._left = after
        self._broke = broke

    async def send_serialized_message(self, message: bytes) -> None:
        if self._left:
            self._left -= 1
            await self._call.send_serialized_message(message)
        else:
            self._broke()
            raise grpc.aio.InternalError("the transport has closed the stream")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@pytest.mark.parametrize("after", [0, 1])
async def test_a_write_on_a_stream_that_ends_does_not_hide_why(
    servicer: Servicer, channel: grpc.aio.Channel, after: int
) -> None:
    """The status comes whole, its hint when to come back as well, and what was said before it is received."""
    broke = asyncio.Event()

    async def end(session: ServerSession[Any, Any]) -> None:
        await broke.wait()
        for ref in range(3):
            session.outbox.message.refusals.add(ref=ref)
        session.outbox.flush(3)
        while session.outbox.message.refusals:  # until they have left
            await asyncio.sleep(0)
        raise MeshError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", "the disk is full", retry_after=60)

    def open() -> Any:
        call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
        call._cython_call = BrokenWrites(call._cython_call, after, broke.set)
        return call

    class Talkative(Handler):
        def received(self, response: worker_pb2.ExecuteResponse) -> None:
            super().received(response)
            client.outbox.flush()

    servicer.execute = end
    handler = Talkative()
    client = SessionClient("test", open, worker_pb2.ExecuteRequest, handler)
    running = asyncio.create_task(client.run())
    error = await handler.ends.get()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    received = [handler.responses.get_nowait() for _ in range(handler.responses.qsize())]
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", 60)
    assert [refusal.ref for response in received for refusal in response.refusals] == [0, 1, 2]


async def test_the_first_error_that_ends_a_session_is_told(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def stay(session: ServerSession[Any, Any]) -> None:
        def twice() -> None:
            session.fail(MeshError(Code.FAILED_PRECONDITION, "TERM_OVER", "it is over"))
            session.fail(MeshError(Code.UNAVAILABLE, "DRAINING", "and it drains"))

        asyncio.get_running_loop().call_soon(twice)
        async for _ in session:
            pass

    servicer.execute = stay
    call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
    assert (await end_of(call)).reason == "TERM_OVER"


async def test_an_overflow_before_the_writer_has_begun_ends_it() -> None:
    """An owner may swallow what `flush` raises; the session has to end all the same."""
    outbox = Outbox(worker_pb2.ExecuteRequest, lambda _: asyncio.sleep(0), 1)
    with pytest.raises(MeshError, match="SESSION_OVERFLOW"):
        outbox.flush(2)
    with pytest.raises(MeshError, match="SESSION_OVERFLOW"):
        await asyncio.wait_for(outbox.run(), 60)


async def test_an_overflow_is_told_even_if_the_write_that_it_ends_breaks() -> None:
    async def write(message: worker_pb2.ExecuteRequest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise grpc.aio.InternalError("the transport has closed the stream")

    outbox = Outbox(worker_pb2.ExecuteRequest, write, 1)
    writer = asyncio.create_task(outbox.run())
    outbox.flush()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(MeshError, match="SESSION_OVERFLOW"):
        outbox.flush(2)
    with pytest.raises(MeshError, match="SESSION_OVERFLOW"):
        await writer


async def test_a_stream_that_is_left_in_the_middle_of_a_write_ends_its_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once and in its own task: the handler learns of it, and the call does not count as one that ended well."""
    left = asyncio.Event()

    class Endless(router_pb2_grpc.RouterServiceServicer):
        async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                while True:
                    yield router_pb2.StreamGenerateResponse(started={"model": "x" * 1_000_000})
            finally:
                left.set()

    def ended_well() -> float:
        labels = {"method": "/forebay.api.router.v1.RouterService/StreamGenerate", "code": "OK"}
        return REGISTRY.get_sample_value("forebay_rpc_seconds_count", labels) or 0

    server = RpcServer("127.0.0.1:0")
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, Endless(), "forebay.api.router.v1.RouterService")
    await server.start()
    before = ended_well()
    async with connect(server.address, caller="test") as channel:
        call = router_pb2_grpc.RouterServiceStub(channel).StreamGenerate(router_pb2.StreamGenerateRequest())
        await call.read()
        call.cancel()
        async with asyncio.timeout(60):
            await left.wait()
    await server.drain(0)
    assert ended_well() == before
    assert "Failed to detach context" not in caplog.text


async def test_a_bad_first_message_gets_its_status_at_once(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    async def refuse(session: ServerSession[Any, Any]) -> None:
        raise MeshError(Code.INVALID_ARGUMENT, "HELLO_MISSING", "say hello first")

    servicer.execute = refuse
    call = worker_pb2_grpc.WorkerServiceStub(channel).Execute()
    with contextlib.suppress(grpc.aio.AioRpcError):  # the status may be there first
        await call.write(worker_pb2.ExecuteRequest())
    assert (await end_of(call)).reason == "HELLO_MISSING"


async def test_a_peer_that_never_welcomes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.rpc.session.WELCOME_WITHIN_S", 0.01)

    class Silent(worker_pb2_grpc.WorkerServiceServicer):
        async def Execute(self, requests: Any, context: Any) -> None:
            async for _ in requests:
                pass

    server = RpcServer("127.0.0.1:0")
    server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, Silent(), NAME)
    await server.start()
    handler = Handler()
    async with connect(server.address, caller="test") as channel:
        await channel.channel_ready()
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        running = asyncio.create_task(SessionClient("test", stub.Execute, worker_pb2.ExecuteRequest, handler).run())
        assert (await handler.ends.get()).reason == "NO_WELCOME"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await server.drain(0)


async def test_a_session_that_overflows_ends_with_a_typed_error(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    servicer.limit = 10

    async def flood(session: ServerSession[Any, Any]) -> None:
        for ref in range(100):
            session.outbox.message.refusals.add(ref=ref)
            session.outbox.flush()

    servicer.execute = flood
    handler = Handler()
    client = SessionClient(
        "test", worker_pb2_grpc.WorkerServiceStub(channel).Execute, worker_pb2.ExecuteRequest, handler
    )
    running = asyncio.create_task(client.run())
    error = await handler.ends.get()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "SESSION_OVERFLOW")
