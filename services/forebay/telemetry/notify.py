"""Tells whoever started this process what it is doing, by the protocol of systemd's sd_notify.

The variable NOTIFY_SOCKET names a datagram socket; without it nothing is told. `forebay up` listens on one, and so does systemd
for a unit of `Type=notify`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

VARIABLE = "NOTIFY_SOCKET"


def notify(**fields: object) -> None:
    """Sends fields such as READY=1 or STATUS="3 requests run"; never waits and never raises."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return
    lines = [f"{field}={value}" for field, value in {**fields, "MAINPID": os.getpid()}.items()]
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), "\0" + name[1:] if name.startswith("@") else name)
