"""Free loopback ports for the processes of a mesh, below the range from which the kernel takes ports for outgoing connections."""

from __future__ import annotations

import socket
import sys
import zlib

_FIRST, _COUNT = 20_000, 12_000


class Ports:
    """Takes free ports and keeps others from taking them, also while a process that listens there is being restarted.

    A port stays bound here, without listening, for as long as this object lives. Linux lets a server that sets SO_REUSEADDR, as
    all servers of the mesh do, listen on a port that is so bound, and nobody who asks for a free port gets it.
    """

    def __init__(self, seed: str) -> None:
        """`seed` decides where the search begins: the same seed finds the same ports again as long as they are free."""
        self._seed = seed
        self._held: list[socket.socket] = []

    def take(self, name: str) -> int:
        """Returns a free port for the process `name`.

        Raises:
            OSError: every port of the range is taken.
        """
        start = zlib.crc32(f"{self._seed}/{name}".encode())
        for step in range(_COUNT):
            port = _FIRST + (start + step) % _COUNT
            if self._hold(port):
                return port
        raise OSError(f"no port from {_FIRST} to {_FIRST + _COUNT - 1} is free on 127.0.0.1")

    def release(self) -> None:
        """Gives all ports back."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _hold(self, port: int) -> bool:
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            return False
        if sys.platform == "linux":
            # Only now: bound with the option set, this socket would share the port with another mesh's.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.append(sock)
        else:
            sock.close()
        return True
