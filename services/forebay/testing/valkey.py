"""A real Valkey (or Redis) for tests: a process on a free loopback port."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

from forebay.cli.valkey import valkey_binary


def free_port() -> int:
    """Returns a loopback port that the kernel says is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ValkeyServer:
    """One server process; stop it with `stop`, or kill it and `start` it again on the same port and data."""

    def __init__(self, directory: Path, binary: Path | None = None, *, durable: bool = False) -> None:
        self.directory = directory.resolve()
        self.binary = binary or valkey_binary()
        self.port = free_port()
        self.durable = durable
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's redis:// address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts the server and returns once it accepts connections.

        Raises:
            RuntimeError: the process ended, or did not listen within 10 s.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "yes" if self.durable else "no", "--appendfsync", "everysec"]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
                return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not start; see {self.directory / 'server.log'}")

    def kill(self) -> None:
        """Ends the process as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
