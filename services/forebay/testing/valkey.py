"""A real Valkey (or Redis) for tests: a process on a free loopback port, or three of them as a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from forebay.cli.valkey import valkey_binary
from forebay.testing.movable_clock import MovableClock

# Longer than the server keeps a time.
CLOCK_WITHIN_S = 0.15


def free_port() -> int:
    """Returns a loopback port that the kernel says is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ValkeyServer:
    """One server process; stop it with `stop`, or kill it and `start` it again on the same port and data."""

    def __init__(
        self,
        directory: Path,
        binary: Path | None = None,
        *,
        durable: bool = False,
        cluster: bool = False,
        clock: MovableClock | None = None,
    ) -> None:
        """Prepares; with a `clock`, `set_clock` moves the server's wall clock."""
        self.directory = directory.resolve()
        self.binary = binary or valkey_binary()
        self.port = free_port()
        self.durable = durable
        self._clock = clock
        self.bus_port = free_port() if cluster else None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's redis:// address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts the server and returns once it accepts connections.

        Raises:
            RuntimeError: the process ended, or did not listen within 60 s.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "yes" if self.durable else "no", "--appendfsync", "everysec"]
        if self.bus_port is not None:
            command += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
        with (self.directory / "server.log").open("ab") as log:
            environment = {**os.environ, "LC_ALL": "C", **(self._clock.environment if self._clock else {})}
            group = 0 if self._clock else None
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=group)
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
                return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not start; see {self.directory / 'server.log'}")

    def set_clock(self, ahead_s: float) -> None:
        """Sets the wall clock of the running server ahead of the real one, or behind it; a later `start` sets it right.

        Returns once the server's TIME has followed: it keeps a time for up to 0.1 s.
        """
        assert self._clock is not None
        assert self.process is not None
        self._clock.set(ahead_s, self.process.pid)
        with Redis(port=self.port) as client:
            while True:
                seconds, microseconds = client.time()
                if abs(seconds + microseconds / 1e6 - time.time() - ahead_s) < CLOCK_WITHIN_S:
                    return
                time.sleep(0.01)

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


SLOTS = 16_384


class ValkeyCluster:
    """Primaries that share the slots, without replicas."""

    def __init__(self, directory: Path, binary: Path | None = None, nodes: int = 3) -> None:
        self.nodes: Sequence[ValkeyServer] = [
            ValkeyServer(directory / str(number), binary, cluster=True) for number in range(nodes)
        ]

    @property
    def url(self) -> str:
        """The cluster's redis+cluster:// address, which is its first node's."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        """Starts the nodes, gives out the slots and returns once all nodes know of each other.

        Raises:
            RuntimeError: a node did not start, or they did not find together within 60 s.
        """
        for node in self.nodes:
            node.start()
        clients: list[Any] = [Redis(port=node.port, decode_responses=True) for node in self.nodes]
        share = -(-SLOTS // len(clients))
        for number, client in enumerate(clients):
            last = min(SLOTS, (number + 1) * share) - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", number * share, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.bus_port)
        give_up = time.monotonic() + 60
        while not all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients):
            if time.monotonic() > give_up:
                raise RuntimeError("the nodes of the cluster do not find together")
            time.sleep(0.02)
        for client in clients:
            client.close()

    def flush(self) -> None:
        """Forgets all that is stored."""
        for node in self.nodes:
            with Redis(port=node.port) as client:
                client.flushall()

    def stop(self) -> None:
        """Ends the nodes."""
        for node in self.nodes:
            node.stop()
