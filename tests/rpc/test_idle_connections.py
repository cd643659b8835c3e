"""Connections without a call give way when a server's connections run out, and no others do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.cli.certificates import certify
from forebay.config import TlsConfig
from forebay.rpc import idle_connections
from forebay.rpc.client import connect
from forebay.rpc.idle_connections import IdleRule, Peer, Peers, peer_of
from forebay.rpc.server import RpcServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def peers(*numbers: int) -> set[Peer]:
    return {("10.0.0.1", number) for number in numbers}


def test_below_half_of_the_bound_nothing_is_closed() -> None:
    rule = IdleRule(4, idle_s=1)
    assert [rule.to_close(peers(1, 2), set(), now) for now in (0, 10)] == [[], []]


def test_above_it_those_idle_for_a_while_are_closed_the_longest_idle_first() -> None:
    rule = IdleRule(8, idle_s=1)
    assert rule.to_close(peers(1, 2), set(), 0.0) == []
    assert rule.to_close(peers(1, 2, 3, 4, 5), set(), 0.5) == [], "nobody is idle for long enough"
    assert rule.to_close(peers(1, 2, 3, 4, 5, 6), set(), 0.7) == []
    assert rule.to_close(peers(1, 6, 7, 8, 9, 10), set(), 1.6) == peers_in_order(1)


def test_when_nearly_all_are_taken_they_are_closed_sooner() -> None:
    rule = IdleRule(8, idle_s=1)
    assert rule.to_close(peers(*range(7)), set(), 0.0) == []
    assert rule.to_close(peers(*range(7)), set(), 0.4) == []
    assert len(rule.to_close(peers(*range(7)), set(), 0.5)) == 3


def test_a_connection_with_a_call_is_never_closed_and_idle_anew_afterwards() -> None:
    rule = IdleRule(2, idle_s=1)
    rule.to_close(peers(1, 2), set(), 0.0)
    assert rule.to_close(peers(1, 2), peers(1, 2), 5.0) == []
    assert rule.to_close(peers(1, 2), peers(2), 5.5) == []
    assert rule.to_close(peers(1, 2), peers(2), 6.5) == peers_in_order(1)


def peers_in_order(*numbers: int) -> list[Peer]:
    return [("10.0.0.1", number) for number in numbers]


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:127.0.0.1:50000", ("127.0.0.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:[::ffff:10.0.0.1]:7", ("10.0.0.1", 7)),
        ("unix:", None),
        ("ipv4:nonsense:7", None),
        ("", None),
    ],
)
def test_grpcs_names_of_peers_are_understood(name: str, peer: Peer | None) -> None:
    assert peer_of(name) == peer


def test_a_peer_has_calls_until_its_last_has_ended() -> None:
    known = Peers()
    with known.calling("ipv4:127.0.0.1:1"):
        with known.calling("ipv4:127.0.0.1:1"):
            pass
        assert known.with_calls() == {("127.0.0.1", 1)}
    assert known.with_calls() == set()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_connections, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(IdleRule.__init__, "__defaults__", (0.0,))


@asynccontextmanager
async def server(max_connections: int, tls: TlsConfig | None) -> AsyncIterator[RpcServer]:
    server = RpcServer("127.0.0.1:0", max_connections=max_connections, tls=tls)
    await server.start()
    yield server
    await server.drain(0)


@pytest.fixture(params=["plaintext", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> TlsConfig | None:
    return TlsConfig.model_validate(certify(tmp_path, "quota", "quota-1")) if request.param == "tls" else None


async def silent_connection(server: RpcServer, words: bytes) -> None:
    """Opens a connection that says so much and no more; returns once the server has ended it."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(words)
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass
    writer.close()


async def answered(channel: grpc.aio.Channel) -> None:
    """Returns once a call has been answered; here a connection may be closed as soon as it is there."""
    check = health_pb2_grpc.HealthStub(channel).Check
    while await check(health_pb2.HealthCheckRequest(), wait_for_ready=True).code() is not grpc.StatusCode.OK:
        pass


@pytest.mark.parametrize("words", [b"", PREFACE, PREFACE + EMPTY_SETTINGS, b"\x16\x03\x01\x02\x00\x01"], ids=repr)
async def test_silent_connections_give_way_and_a_client_with_a_call_does_not(
    tls: TlsConfig | None, words: bytes
) -> None:
    async with server(8, tls) as busy, connect(busy.address, caller="test", service="quota", tls=tls) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(60):
            await watch.read()
            silent = [asyncio.create_task(silent_connection(busy, words)) for _ in range(7)]
            for ended in itertools.islice(asyncio.as_completed(silent), 4):
                await ended
            # There is room again, for somebody who has something to say.
            async with connect(busy.address, caller="other", service="quota", tls=tls) as other:
                await answered(other)
        assert not watch.done()
        watch.cancel()
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_a_client_whose_idle_connection_was_closed_connects_again(tls: TlsConfig | None) -> None:
    async with server(1, tls) as busy, connect(busy.address, caller="test", service="quota", tls=tls) as channel:
        for _ in range(2):
            async with asyncio.timeout(60):
                await answered(channel)
                while (state := channel.get_state()) is grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
