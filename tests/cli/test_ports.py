"""Ports that stay free for whom they were taken."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from forebay.cli.ports import Ports
from forebay.cli.supervisor import StartError

# Of this process alone: the same test may run elsewhere on the machine.
SEED = f"test {os.getpid()}"


@pytest.fixture
def ports() -> Iterator[Ports]:
    taken = Ports(SEED)
    yield taken
    taken.release()


def test_ports_lie_below_the_ephemeral_range_and_differ(ports: Ports) -> None:
    taken = [ports.take(name) for name in ("router-1", "router-2", "worker-1", "router-1")]
    assert len(set(taken)) == 4
    assert all(20_000 <= port < 32_768 for port in taken)


def test_the_same_seed_finds_the_same_port_again(ports: Ports) -> None:
    port = ports.take("router-1")
    ports.release()
    again = Ports(SEED)
    assert again.take("router-1") == port
    again.release()


def test_nobody_else_gets_a_taken_port(ports: Ports) -> None:
    port = ports.take("router-1")
    other = Ports(SEED)
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


def test_a_connection_that_is_still_remembered_does_not_move_a_port(ports: Ports) -> None:
    """A server that closes first leaves TIME-WAIT on its port, as a router that is stopped does."""
    port = ports.take("router-1")
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""
        client.close()
    ports.release()
    assert ports.take("router-1") == port


def test_a_known_port_is_taken_again_even_when_the_search_would_find_another() -> None:
    known = Ports("a test", {"router-1": 20_001})
    assert known.take("router-1") == 20_001
    known.release()


def test_a_port_that_was_asked_for_is_given_or_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        asked = Ports("a test", asked={"router-1": taken})
        with pytest.raises(StartError, match=rf"port {taken} for router-1 .*process {os.getpid()} listens there"):
            asked.take("router-1")
    assert asked.take("router-1") == taken
    other = Ports("another", asked={"quota": taken})
    with pytest.raises(StartError, match="another mesh on this machine has it"):
        other.take("quota")
    asked.release()
    assert other.take("quota") == taken
    other.release()


def test_a_port_that_was_asked_for_is_given_to_nobody_else() -> None:
    ports = Ports("a test", {"quota": 20_002}, {"router-1": 20_002})
    assert ports.take("quota") != 20_002
    assert ports.take("router-1") == 20_002
    ports.release()
