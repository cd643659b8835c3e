"""A disk without room: requests are refused typed, or answered and recorded, and all of it goes on once there is room."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from forebay.cli.data_dir import DataDir
from forebay.cli.health import service_health
from forebay.cli.operator import operator_certificate
from forebay.client import ForebayClient, MeshError
from forebay.errors import Code
from forebay.testing.processes import MeshProcesses

pytestmark = pytest.mark.slow

# What a request may end with while nothing can be written: which process notices first is chance.
CODES = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}


class NoRoom(Protocol):
    """Takes the room away and gives it back, while processes come and go.

    Attributes:
        certain: whether no write succeeds without room; SQLite writes into its log's old pages, where a disk has them.
    """

    certain = False

    def take(self, mesh: MeshProcesses) -> None: ...

    def give_back(self, mesh: MeshProcesses) -> None: ...


class FileSizeLimit(NoRoom):
    """No process may write to a file: EFBIG, and SIGXFSZ for whoever does not ignore it."""

    certain = True

    def take(self, mesh: MeshProcesses) -> None:
        self._limit(mesh, 0)

    def give_back(self, mesh: MeshProcesses) -> None:
        self._limit(mesh, resource.RLIM_INFINITY)

    def _limit(self, mesh: MeshProcesses, size: int) -> None:
        # The launcher first: what it starts meanwhile inherits the limit.
        launcher = mesh.launcher_pid
        self._limit_one(launcher, size)
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(file.read_text().rpartition(")")[2].split()[1])
            except (OSError, ProcessLookupError):
                continue
            if parent == launcher:
                self._limit_one(int(file.parent.name), size)

    def _limit_one(self, pid: int, size: int) -> None:
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        except ProcessLookupError:
            pass


class FullDisk(NoRoom):
    """A small file system, filled by a file to the last byte."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def take(self, mesh: MeshProcesses) -> None:
        with self._filler.open("wb", buffering=0) as filler:
            for size in (1 << 16, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    pass

    def give_back(self, mesh: MeshProcesses) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def eventually(holds: Callable[[], bool]) -> None:
    """Returns once `holds` does; the bound is there to end a test that fails."""
    async with asyncio.timeout(180):
        while not holds():
            await asyncio.sleep(0.05)


async def health(mesh: MeshProcesses, name: str) -> str:
    tls = operator_certificate(DataDir(mesh.data))
    return await service_health(name, mesh.state()["processes"][name]["address"], tls)


async def until_health(mesh: MeshProcesses, name: str, wanted: str) -> None:
    async with asyncio.timeout(180):
        while await health(mesh, name) != wanted:
            await asyncio.sleep(0.05)


async def ask(mesh: MeshProcesses) -> str:
    """Returns "OK" or the reason of the refusal. It waits a second at most for a worker whose spool has no room."""
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        try:
            await client.generate("Hello", max_tokens=2, queue_timeout=1.0)
        except MeshError as error:
            typed = error.code in CODES and not error.reason.startswith("GRPC_")
            return error.reason if typed else f"untyped: {error}"
    return "OK"


async def recorded(mesh: MeshProcesses) -> int:
    """Returns how many requests the ledger has; -1 while it cannot be asked."""
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        try:
            return sum(total.requests for total in await client.sum_usage(["tenant"]))
        except MeshError:
            return -1


async def goes_on_when_there_is_room_again(mesh: MeshProcesses, room: NoRoom) -> None:
    outcomes = [await ask(mesh) for _ in range(2)]
    assert outcomes == ["OK", "OK"]
    lives = {name: process["pid"] for name, process in mesh.state()["processes"].items()}

    room.take(mesh)
    # The last page of each file may still have room on a full disk: it is asked until that is used up.
    async with asyncio.timeout(180):
        while outcomes[-1] == "OK":
            outcomes.append(await ask(mesh))
    await until_health(mesh, "quota", "NOT_SERVING")
    if room.certain:
        await until_health(mesh, "metering", "NOT_SERVING")
    # A process that dies now cannot start either; the launcher goes on trying.
    for name in ("quota", "worker-1", "metering"):
        mesh.kill(name)
    outcomes.append(await ask(mesh))
    room.give_back(mesh)

    for name in lives:
        if name != "valkey":
            await until_health(mesh, name, "SERVING")
    await eventually(lambda: bool(mesh.state()["ready"]))
    async with asyncio.timeout(180):
        while (outcome := await ask(mesh)) != "OK":
            outcomes.append(outcome)
            await asyncio.sleep(0.1)
    outcomes.append("OK")
    assert not [outcome for outcome in outcomes if outcome.startswith("untyped")]
    async with asyncio.timeout(180):
        while await recorded(mesh) < outcomes.count("OK"):
            await asyncio.sleep(0.1)
    assert await recorded(mesh) == outcomes.count("OK")
    after = {name: process["pid"] for name, process in mesh.state()["processes"].items()}
    assert {name for name in lives if lives[name] != after[name]} == {"quota", "worker-1", "metering"}


async def test_a_file_size_limit(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "mesh") as mesh:
        await goes_on_when_there_is_room_again(mesh, FileSizeLimit())
        assert "log lines lost" in (mesh.data / "logs" / "router-1.log").read_text()


@pytest.mark.system
async def test_a_full_disk(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "only root may mount a file system: run `make test-system` as root"
    with small_disk(tmp_path / "disk") as folder, MeshProcesses(folder / "mesh") as mesh:
        await goes_on_when_there_is_room_again(mesh, FullDisk(folder))
