"""Asks a process whether it can do its job."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.cli.operator import connect_to
from forebay.config import TlsConfig

_PATIENCE_S = 2.0


async def service_health(name: str, address: str, tls: TlsConfig) -> str:
    """Returns what grpc.health.v1 says of the whole server: SERVING, NOT_SERVING, or UNREACHABLE when it says nothing in time."""
    # A channel for each question: one that is kept remembers its last failure and waits before it dials again.
    async with connect_to(name, address, tls) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S
            )
        except grpc.aio.AioRpcError:
            return "UNREACHABLE"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def valkey_eviction(address: str) -> str:
    """Returns the policy by which a server may evict keys; empty if it evicts none, or does not answer."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"INFO memory\r\n")
            size = int((await reader.readline()).removeprefix(b"$"))
            answer = await reader.readexactly(size)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return ""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    fields = dict(line.partition(":")[::2] for line in answer.decode(errors="replace").splitlines())
    policy = fields.get("maxmemory_policy", "noeviction")
    return "" if policy == "noeviction" else policy


async def valkey_health(address: str) -> str:
    """Returns SERVING when the server answers PING, NOT_SERVING while it loads its data, UNREACHABLE otherwise."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PING\r\n")
            answer = await reader.readline()
    except (OSError, TimeoutError):
        return "UNREACHABLE"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "SERVING" if answer == b"+PONG\r\n" else "NOT_SERVING"
