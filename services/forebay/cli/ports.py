"""Loopback ports for the processes of a mesh, below the range from which the kernel takes ports for outgoing connections."""

from __future__ import annotations

import socket
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from forebay.cli.supervisor import StartError

_FIRST, _COUNT = 20_000, 12_000
_HOST = "127.0.0.1"
_LISTENING = "0A"


class Ports:
    """Takes ports and keeps others from taking them, also while a process that listens there is being restarted.

    A port stays bound here, without listening, for as long as this object lives. Linux lets a server that sets SO_REUSEADDR, as
    all servers of the mesh do, listen on a port that is so bound, and nobody who asks for a free port gets it.

    The port is bound with SO_REUSEADDR set, because without it a connection in TIME-WAIT, which a router that has just ended
    leaves by the dozen, looks like a server. With it, two meshes could bind one port; a socket in Linux's abstract name space
    stands for the port and keeps the second mesh out.
    """

    def __init__(
        self, seed: str, known: Mapping[str, int] | None = None, asked: Mapping[str, int] | None = None
    ) -> None:
        """Prepares.

        Args:
            seed: decides where the search for a free port begins.
            known: the port of each process in an earlier run, which it gets again if it is free.
            asked: the ports of processes that may have no other.
        """
        self._seed = seed
        self._known = dict(known or {})
        self._asked = dict(asked or {})
        self._held: list[socket.socket] = []
        self.taken: dict[str, int] = {}

    def take(self, name: str) -> int:
        """Returns a port for the process `name`.

        Raises:
            StartError: the port that was asked for is in use, or every port of the range is.
        """
        if name in self._asked:
            port = self._asked[name]
            if (objection := self._hold(port)) is not None:
                raise StartError(f"port {port} for {name} cannot be used: {objection}")
        else:
            port = self._search(name)
        self.taken[name] = port
        return port

    def release(self) -> None:
        """Gives all ports back."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _search(self, name: str) -> int:
        start = zlib.crc32(f"{self._seed}/{name}".encode())
        found = (_FIRST + (start + step) % _COUNT for step in range(_COUNT))
        for port in (*([self._known[name]] if name in self._known else []), *found):
            if port not in self._asked.values() and self._hold(port) is None:
                return port
        raise StartError(f"no port from {_FIRST} to {_FIRST + _COUNT - 1} is free on {_HOST}; give ports with --port")

    def _hold(self, port: int) -> str | None:
        """Binds a port; returns why it cannot be used, or None."""
        held: list[socket.socket] = []
        try:
            if sys.platform == "linux":
                held.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                held[-1].bind(f"\0forebay/port/{port}")
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held[-1].bind((_HOST, port))
        except OSError as error:
            for each in held:
                each.close()
            if len(held) == 1:
                return "another mesh on this machine has it; stop that one, or give another port"
            holder = _listener(port)
            return f"{holder or error.strerror}; end it, or give another port"
        if sys.platform == "linux":
            self._held += held
        else:
            for each in held:
                each.close()
        return None


def _listener(port: int) -> str:
    """Returns which process listens on a port, in words; empty where that cannot be seen."""
    inodes = set(_listening(port))
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with suppress(OSError):
            if str(link.readlink()) in inodes:
                pid = link.parts[2]
                command = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                return f"process {pid} listens there ({command[:100]})"
    return "another process listens there" if inodes else ""


def _listening(port: int) -> Iterator[str]:
    """Yields the sockets that listen on a port, as /proc names them."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
