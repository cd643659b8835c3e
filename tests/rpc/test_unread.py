"""Messages that are read when the server decides: by whom, how many at a time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error
from forebay.rpc.unread import MAX_STRANGER_BYTES, Reads, UnreadMessage

NAME = "forebay.api.router.v1.RouterService"


class Silent:
    """A call whose message never comes."""

    def __init__(self) -> None:
        self.reading = False

    async def read(self) -> bytes:
        self.reading = True
        await asyncio.Event().wait()
        raise AssertionError


async def test_the_oldest_of_too_many_reads_gives_way() -> None:
    reads = Reads(2, within_s=600)
    silent = [Silent() for _ in range(4)]
    tasks: list[asyncio.Task[Any]] = []
    for call in silent:
        tasks.append(asyncio.create_task(reads.read(call)))  # type: ignore[arg-type]
        while not call.reading:
            await asyncio.sleep(0)
    ended = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [error.reason for error in ended if isinstance(error, MeshError)] == ["MESSAGE_TOO_SLOW"] * 2
    assert not any(task.done() for task in tasks[2:])
    assert len(reads._open) == 2
    for task in tasks[2:]:
        task.cancel()
    await asyncio.gather(*tasks[2:], return_exceptions=True)
    assert not reads._open


async def test_a_read_that_takes_too_long_ends() -> None:
    with pytest.raises(MeshError) as caught:
        await Reads(2, within_s=0).read(Silent())  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "MESSAGE_TOO_SLOW")


class Servicer(router_pb2_grpc.RouterServiceServicer):
    """Reads what comes with the right key."""

    def __init__(self) -> None:
        self.reads = Reads(4, within_s=600)
        self.read = 0

    async def CountTokens(self, unread: Any, context: Any) -> router_pb2.CountTokensResponse:
        return router_pb2.CountTokensResponse(prompt_tokens=await self._size(unread, context))

    async def StreamGenerate(self, unread: Any, context: Any) -> AsyncIterator[router_pb2.StreamGenerateResponse]:
        started = {"prompt_tokens": await self._size(unread, context)}
        yield router_pb2.StreamGenerateResponse(started=started)

    async def _size(self, unread: UnreadMessage, context: Any) -> int:
        if ("authorization", "right") not in context.invocation_metadata():
            raise MeshError(Code.UNAUTHENTICATED, "UNKNOWN_KEY", "no")
        size = len(await unread.read(self.reads))
        self.read += 1
        return size


@pytest.fixture
async def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def channel(servicer: Servicer) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer("127.0.0.1:0", public=True, max_message_bytes=1 << 20)
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, NAME)
    await server.start()
    async with connect(server.address, caller="test") as channel:
        yield channel
    await server.drain(0)


async def failure(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call if not hasattr(call, "read") else await call.read()
    return from_rpc_error(caught.value)


async def test_unary_and_streamed_answers_read_their_message(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    stub, metadata = router_pb2_grpc.RouterServiceStub(channel), (("authorization", "right"),)
    request = router_pb2.CountTokensRequest(model="x" * 100_000)
    assert (await stub.CountTokens(request, metadata=metadata)).prompt_tokens == request.ByteSize()
    stream = stub.StreamGenerate(router_pb2.StreamGenerateRequest(), metadata=metadata)
    assert [event.started.prompt_tokens async for event in stream] == [0]
    assert servicer.read == 2


async def test_without_a_key_nothing_is_read(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    stub = router_pb2_grpc.RouterServiceStub(channel)
    for size in (0, 900_000, 2_000_000):  # the last is above what the server would take
        error = await failure(stub.CountTokens(router_pb2.CountTokensRequest(model="x" * size)))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "UNKNOWN_KEY")
        error = await failure(stub.StreamGenerate(router_pb2.StreamGenerateRequest(options={"model": "x" * size})))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "UNKNOWN_KEY")
    assert servicer.read == 0


async def test_a_call_without_a_message_is_told_so(channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary(f"/{NAME}/CountTokens", request_serializer=None, response_deserializer=None)(
        metadata=(("authorization", "right"),)
    )
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize(
    ("kind", "rpc"),
    [
        ("unary_unary", "grpc.health.v1.Health/Check"),
        ("unary_stream", "grpc.health.v1.Health/Watch"),
        ("stream_stream", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
async def test_what_is_open_to_strangers_takes_small_messages(channel: grpc.aio.Channel, kind: str, rpc: str) -> None:
    method = getattr(channel, kind)(f"/{rpc}", request_serializer=None, response_deserializer=None)
    large = b"\x0a" + b"\x81\x40" + b"x" * 8_193  # a name of that length
    assert len(large) > MAX_STRANGER_BYTES
    for data, reason in ((large, "BAD_REQUEST"), (b"\xff\xff", "MALFORMED_MESSAGE")):
        if kind == "stream_stream":
            call = method()
            await call.write(data)
        else:
            call = method(data)
        error = await failure(call)
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, reason)


async def test_strangers_are_answered(channel: grpc.aio.Channel) -> None:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    assert (
        await check(health_pb2.HealthCheckRequest(service=NAME))
    ).status == health_pb2.HealthCheckResponse.NOT_SERVING
    info = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )()
    for _ in range(2):
        await info.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [service.name for service in (await info.read()).list_services_response.service]
        assert NAME in names
    await info.done_writing()
    assert await info.read() is grpc.aio.EOF


async def test_what_is_compressed_is_refused(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary(f"/{NAME}/CountTokens", request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(bytes(1 << 20), metadata=(("authorization", "right"),), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert servicer.read == 0
