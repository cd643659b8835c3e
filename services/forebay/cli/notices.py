"""What processes say of themselves while they run, by the protocol of systemd's sd_notify (`forebay.telemetry.notify`)."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

MAX_NOTICE_BYTES = 4_096

Heard = Callable[[int, Mapping[str, str]], None]


class Notices:
    """Listens for notices; an async context manager. Only Linux has the sockets; elsewhere nothing is heard.

    Attributes:
        environment: what a process must have in its environment to be heard.
    """

    def __init__(self, heard: Heard) -> None:
        """Prepares; `heard` is called with the sender's process id and the fields, on the event loop."""
        self._heard = heard
        self._socket: socket.socket | None = None
        self.environment: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        if sys.platform == "linux":
            name = f"forebay/{os.getpid()}/{secrets.token_hex(4)}"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(f"\0{name}")
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
            self.environment = {"NOTIFY_SOCKET": f"@{name}"}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            notice = self._socket.recv(MAX_NOTICE_BYTES).decode(errors="replace")
        except OSError:
            return
        fields = dict(line.partition("=")[::2] for line in notice.splitlines())
        if (pid := fields.get("MAINPID", "")).isdecimal():
            self._heard(int(pid), fields)
