"""What one caller can do to a real router: neither hold its event loop nor fill its memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from forebay.api.router.v1 import router_pb2
from forebay.client import ForebayClient
from forebay.testing.processes import MeshProcesses

from .conftest import FAST

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("isolation")]

ROUTER = "/forebay.api.router.v1.RouterService"
MIB = 1 << 20
# What the messages that are read at one time come to, with gRPC's and Python's copies.
MOST_GROWTH_MIB = 150


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcesses]:
    with MeshProcesses(tmp_path_factory.mktemp("isolation") / "data", environment=FAST) as mesh:
        yield mesh


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


async def call(mesh: MeshProcesses, rpc: str, data: bytes, key: str = "") -> str:
    """Sends a message on a connection of its own; returns how the call ended."""
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    metadata: Any = (("authorization", f"Bearer {key}"),) if key else ()
    async with grpc.aio.insecure_channel(mesh.router_address(), options=options) as channel:
        try:
            await channel.unary_unary(rpc)(data, metadata=metadata, timeout=300)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


def labels(size: int) -> bytes:
    """A request of nothing but labels, which take thirty times their size once they are parsed."""
    label = b"\x3a\x0a\x0a\x05label\x12\x01v"
    inner = label * (size // len(label))
    length, encoded = len(inner), bytearray(b"\x0a")
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((*encoded, length)) + inner


def text(size: int) -> bytes:
    words = "the water of the mill turns the wheel " * (size // 38 + 1)
    return router_pb2.CountTokensRequest(prompt=router_pb2.Prompt(text=words[:size])).SerializeToString()


async def test_memory_does_not_grow_beyond_its_bound(mesh: MeshProcesses) -> None:
    pid, key = mesh.pid("router-1"), mesh.key("initech")
    before = peak_mib(pid)
    for rpc, data, with_key, end in (
        (f"{ROUTER}/Generate", labels(4 * MIB - 1_000), "", {"UNAUTHENTICATED"}),
        ("/grpc.health.v1.Health/Check", labels(2 * MIB), "", {"INVALID_ARGUMENT", "DEADLINE_EXCEEDED"}),
        (f"{ROUTER}/Generate", labels(2 * MIB), key, {"INVALID_ARGUMENT"}),
        (f"{ROUTER}/CountTokens", text(MIB), key, {"OK", "RESOURCE_EXHAUSTED"}),
    ):
        ends = await asyncio.gather(*(call(mesh, rpc, data, with_key) for _ in range(24)))
        assert set(ends) <= end
    assert peak_mib(pid) - before < MOST_GROWTH_MIB


async def test_a_neighbour_is_answered_while_anothers_long_prompts_are_tokenised(mesh: MeshProcesses) -> None:
    key = mesh.key("initech")
    flood = [asyncio.create_task(call(mesh, f"{ROUTER}/CountTokens", text(MIB), key)) for _ in range(6)]
    async with ForebayClient(mesh.router_address(), mesh.key("acme"), timeout=300) as client:
        for size in (10, 1_000):  # for the event loop itself, and for a tokenizer process
            answer = await client.generate("water " * size, max_tokens=1)
            assert answer.usage.completion == 1
    assert not all(task.done() for task in flood)
    assert set(await asyncio.gather(*flood)) == {"OK"}
