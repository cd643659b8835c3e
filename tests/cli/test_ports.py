"""Ports that stay free for whom they were taken."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from forebay.cli.ports import Ports


@pytest.fixture
def ports() -> Iterator[Ports]:
    taken = Ports("a test")
    yield taken
    taken.release()


def test_ports_lie_below_the_ephemeral_range_and_differ(ports: Ports) -> None:
    taken = [ports.take(name) for name in ("router-1", "router-2", "worker-1", "router-1")]
    assert len(set(taken)) == 4
    assert all(20_000 <= port < 32_768 for port in taken)


def test_the_same_seed_finds_the_same_port_again(ports: Ports) -> None:
    port = ports.take("router-1")
    ports.release()
    again = Ports("a test")
    assert again.take("router-1") == port
    again.release()


def test_nobody_else_gets_a_taken_port(ports: Ports) -> None:
    port = ports.take("router-1")
    other = Ports("a test")
    assert other.take("router-1") != port
    other.release()
    with socket.socket() as stranger, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        stranger.bind(("127.0.0.1", port))


def test_its_server_can_listen_on_a_taken_port_again_and_again(ports: Ports) -> None:
    port = ports.take("router-1")
    for _ in range(2):
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_passed_over(ports: Ports) -> None:
    port = ports.take("router-1")
    ports.release()
    with socket.create_server(("127.0.0.1", port)):
        assert ports.take("router-1") == port + 1
