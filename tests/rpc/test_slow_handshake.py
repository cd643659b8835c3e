"""A server on a machine that is busy: it takes a connection at once and answers on it late."""

from __future__ import annotations

import asyncio

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer

pytestmark = pytest.mark.slow

LATE_S = 0.7


async def test_a_server_that_is_late_with_its_first_bytes_is_waited_for() -> None:
    server = RpcServer("127.0.0.1:0")
    await server.start()
    host, _, port = server.address.rpartition(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
        writer.close()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(LATE_S)
        from_server, to_server = await asyncio.open_connection(host, int(port))
        await asyncio.gather(relay(reader, to_server), relay(from_server, writer))

    front = await asyncio.start_server(late, "127.0.0.1", 0)
    address = f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
    async with connect(address, caller="test") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    front.close()
    await server.drain(0)
