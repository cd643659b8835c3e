"""Connections without a call, which give way when a server's connections run out.

A connection costs its opener nothing. One that says nothing at all, that stops in the middle of a TLS handshake, or that only
answers pings holds one of `max_connections` all the same, and gRPC closes whoever comes when they are used up. gRPC's own
time-outs for idle connections are fixed when a server starts. Short ones would make every client that pauses connect again.

So this is decided by need. Below half of `max_connections` nothing is closed. Above, connections that have had no call for
`IDLE_S` are shut down, the longest idle first, until half are free. Above seven eighths, half that time is enough. Clients that
use gRPC notice, and connect again with their next call. A connection with a call is never closed.

gRPC does not tell which connections it has, and the process's own file descriptors do (Linux; elsewhere this does nothing). A
socket is shut down through a duplicate of its descriptor, so gRPC, which goes on owning it, sees that the peer has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from urllib.parse import unquote

from forebay.clock import Clock
from forebay.telemetry.logs import get_logger

IDLE_S = 1.0
LOOK_EVERY_S = 0.25

_DESCRIPTORS = "/proc/self/fd"

# The other end of a connection: its address in the shortest form, and its port.
Peer = tuple[str, int]

log = get_logger("connections")


class Peers:
    """Which peers have calls."""

    def __init__(self) -> None:
        """Nobody has."""
        self._calls: Counter[str] = Counter()

    @contextmanager
    def calling(self, peer: str) -> Iterator[None]:
        """Counts a call of a peer, by gRPC's name of it, for the length of the block."""
        self._calls[peer] += 1
        try:
            yield
        finally:
            self._calls[peer] -= 1
            if not self._calls[peer]:
                del self._calls[peer]

    def with_calls(self) -> set[Peer]:
        """Returns the peers that have calls."""
        return {peer for name in self._calls if (peer := peer_of(name)) is not None}


class IdleRule:
    """Decides which connections are closed; pure, and told of all of them at each look."""

    def __init__(self, max_connections: int, idle_s: float = IDLE_S) -> None:
        """Prepares for a server that takes `max_connections`."""
        self._most_at_ease = max_connections // 2
        self._nearly_all = max_connections * 7 // 8
        self._idle_s = idle_s
        self._idle_since: dict[Peer, float] = {}

    def to_close(self, connected: Set[Peer], busy: Set[Peer], now: float) -> list[Peer]:
        """Returns the connections to close.

        Args:
            connected: all there are.
            busy: those with calls.
            now: in seconds of a monotonic clock.
        """
        idle = connected - busy
        since = {peer: self._idle_since.get(peer, now) for peer in idle}
        self._idle_since = since
        excess = len(connected) - self._most_at_ease
        if excess <= 0:
            return []
        idle_s = self._idle_s / 2 if len(connected) >= self._nearly_all else self._idle_s
        overdue = [peer for peer in idle if now - since[peer] >= idle_s]
        return sorted(overdue, key=lambda peer: since[peer])[:excess]


async def close_idle(port: int, max_connections: int, peers: Peers, clock: Clock) -> None:
    """Closes idle connections to `port` of this process whenever they run out; until cancelled."""
    if not os.path.isdir(_DESCRIPTORS):  # noqa: ASYNC240 - the kernel's own, which no disk holds up
        return
    rule = IdleRule(max_connections)
    while True:
        await clock.sleep(LOOK_EVERY_S)
        # Counting the descriptors takes a tenth of what asking each of them does.
        if len(os.listdir(_DESCRIPTORS)) <= max_connections // 2:
            rule.to_close(set(), set(), clock.monotonic())
            continue
        connected = await asyncio.to_thread(_connections, port)
        closed = rule.to_close(connected.keys(), peers.with_calls(), clock.monotonic())
        if closed:
            count = await asyncio.to_thread(_shut_down, {peer: connected[peer] for peer in closed}, port)
            if count:
                log.warning("idle connections closed", count=count, connections=len(connected))


def peer_of(name: str) -> Peer | None:
    """Returns the peer that gRPC names, such as ipv4:127.0.0.1:50000 or ipv6:%5B::1%5D:50000; None for what is no address."""
    family, _, rest = name.partition(":")
    address, _, port = unquote(rest).rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    with contextlib.suppress(ValueError):
        return _shortest(address.strip("[]")), int(port)
    return None


def _shortest(address: str) -> str:
    """Returns an address in its shortest form; one of IPv4 within IPv6 as IPv4."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _connections(port: int) -> dict[Peer, int]:
    """Returns the descriptors of the connections that peers have made to a port of this process."""
    found: dict[Peer, int] = {}
    for name in os.listdir(_DESCRIPTORS):
        with _duplicate(int(name)) as connection:
            peer = _peer_at(connection, port) if connection is not None else None
        if peer is not None:
            found[peer] = int(name)
    return found


def _shut_down(connections: Mapping[Peer, int], port: int) -> int:
    """Shuts connections down that still are who they were; returns how many."""
    count = 0
    for peer, descriptor in connections.items():
        with _duplicate(descriptor) as connection:
            if connection is not None and _peer_at(connection, port) == peer:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Holds a socket for the block, whatever its owner does meanwhile; None for a descriptor that is no socket of TCP."""
    connection = None
    with contextlib.suppress(OSError):  # it is closed since
        duplicate = os.dup(descriptor)
        try:
            connection = socket.socket(fileno=duplicate)
        except OSError:  # it is no socket
            os.close(duplicate)
    try:
        is_tcp = connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6)
        yield connection if is_tcp else None
    finally:
        if connection is not None:
            connection.close()


def _peer_at(connection: socket.socket, port: int) -> Peer | None:
    """Returns who is at the other end of a connection to a port; None for another connection, or none."""
    try:
        if connection.getsockname()[1] != port:
            return None
        address, peer_port = connection.getpeername()[:2]
    except OSError:  # it listens, or the peer has gone
        return None
    return _shortest(address.partition("%")[0]), peer_port
