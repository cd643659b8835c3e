"""A service that starts other programs while it serves."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Twenty clients call all the time, while programs are started; counts those that did not run.
SERVICE = """
import asyncio, uvloop
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from grpc_health.v1 import health_pb2, health_pb2_grpc

async def main():
    server = RpcServer("127.0.0.1:0")
    await server.start()
    async with connect(server.address, caller="test") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def call():
            while True:
                await stub.Check(health_pb2.HealthCheckRequest())

        calls = [asyncio.create_task(call()) for _ in range(20)]
        failed = 0
        for _ in range(150):
            programs = await asyncio.gather(*(asyncio.create_subprocess_exec("/bin/true") for _ in range(2)))
            failed += sum([await program.wait() != 0 for program in programs])
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await server.drain(0)
    print(failed, "failed")

uvloop.run(main())
"""


def test_no_program_dies_of_grpc_before_it_runs() -> None:
    done = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, text=True, check=True)
    assert done.stdout == "0 failed\n", done.stderr
