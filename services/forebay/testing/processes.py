"""The whole mesh as processes, as a user starts it: `forebay up` in a child, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.cli.certificates import certify
from forebay.cli.operator import connect_to
from forebay.config import TlsConfig
from forebay.rpc.allowlist import ADMIN


class MeshProcesses:
    """Runs `forebay up` on a data directory; as a context manager it returns once the mesh is ready and leaves nothing running.

    Attributes:
        data: the launcher's data directory.
        log: where the launcher's own output goes; `up.log` there, unless told otherwise.
    """

    def __init__(
        self,
        data: Path,
        *,
        engine: str = "simulated",
        routers: int = 1,
        schedulers: int = 1,
        workers: int = 1,
        tenants: Path | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        ready_s: float = 180.0,
    ) -> None:
        self.data = data
        self.log = log or data / "up.log"
        self._command = [sys.executable, "-m", "forebay.cli", "up", "--data", str(data), "--engine", engine]
        self._command += ["--routers", str(routers), "--schedulers", str(schedulers), "--workers", str(workers)]
        if tenants is not None:
            self._command += ["--tenants", str(tenants)]
        self._environment = {**os.environ, **(environment or {})}
        self._ready_s = ready_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # requests that a test has left: they are not waited for
                self._process.send_signal(signal.SIGINT)
                self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"`forebay up` did not end within 60 s of SIGINT; see {self.log}") from None

    @property
    def launcher_pid(self) -> int:
        """The process id of `forebay up`."""
        assert self._process is not None
        return self._process.pid

    @property
    def guardian_pid(self) -> int:
        """The process id of the launcher's guardian."""
        children = Path(f"/proc/{self.launcher_pid}/task/{self.launcher_pid}/children").read_text().split()
        for pid in children:
            if b"forebay.cli.guardian" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
        raise RuntimeError("the launcher has no guardian")

    def state(self) -> dict[str, Any]:
        """Returns the launcher's state file: addresses, process ids, restarts."""
        state: dict[str, Any] = json.loads((self.data / "mesh.json").read_text(encoding="utf-8"))
        return state

    def pid(self, name: str) -> int:
        """Returns the present process id of one process, such as router-1."""
        return int(self.state()["processes"][name]["pid"])

    def channel(self, name: str, service: str = ADMIN) -> grpc.aio.Channel:
        """Returns a channel to one process, such as quota, as the operator or as another service of the mesh."""
        process = self.state()["processes"][name]
        certificate = TlsConfig.model_validate(certify(self.data / "certificates", service, f"test-{service}"))
        return connect_to(name, process["address"], certificate)

    async def leading_scheduler(self) -> str:
        """Returns the name of the scheduler that leads, once one does."""
        while True:
            names: list[str] = [name for name in self.state()["processes"] if name.startswith("scheduler-")]
            for name in names:
                async with self.channel(name) as channel:
                    stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
                    try:
                        await stub.DescribePools(scheduler_pb2.DescribePoolsRequest(page_size=1), timeout=2)
                    except grpc.aio.AioRpcError:
                        continue
                    return name
            await asyncio.sleep(0.05)

    def router_address(self, number: int = 0) -> str:
        """Returns a router's host:port."""
        return str(self.state()["routers"][number])

    def key(self, tenant: str) -> str:
        """Returns the development key of a tenant."""
        keys: dict[str, str] = json.loads((self.data / "dev-keys.json").read_text(encoding="utf-8"))
        return keys[tenant]

    def kill(self, name: str) -> int:
        """Ends one process as kill -9 does; returns the process id that it had."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_ready(self) -> None:
        """Returns once every process is healthy.

        Raises:
            RuntimeError: `forebay up` ended, or the time allowed is over.
        """
        assert self._process is not None
        give_up = time.monotonic() + self._ready_s
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                break
            if (self.data / "mesh.json").exists() and self.state()["ready"]:
                return
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"the mesh is not ready:\n{tail}")
