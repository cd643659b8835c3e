"""Real processes under supervision: Valkey for one that serves, the shell for ones that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from forebay.cli.data_dir import DataDir
from forebay.cli.guardian import Guardian
from forebay.cli.health import service_health, valkey_health
from forebay.cli.mesh_state import MeshState, ModelState
from forebay.cli.operator import operator_certificate
from forebay.cli.ports import Ports
from forebay.cli.restart import RestartPolicy
from forebay.cli.supervisor import Phase, ProcessSpec, StartError, Supervisor
from forebay.testing.valkey import valkey_binary

pytestmark = pytest.mark.slow

MODEL = ModelState("simulated", "/nowhere")
QUICK = RestartPolicy(first_s=0.01, longest_s=0.02)


async def eventually(holds: Callable[[], bool]) -> None:
    """Returns once `holds` does; the bound is there to end a test that fails."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def shell(
    tmp_path: Path, name: str, script: str, healthy: Callable[[], Awaitable[bool]] = yes, tier: int = 0
) -> ProcessSpec:
    return ProcessSpec(
        name, tier, ("/bin/sh", "-c", script), "127.0.0.1:1", tmp_path / f"{name}.log", healthy, stop_within_s=60
    )


def valkey(tmp_path: Path, name: str, port: int) -> ProcessSpec:
    folder = tmp_path / name
    folder.mkdir()

    async def healthy() -> bool:
        return await valkey_health(f"127.0.0.1:{port}") == "SERVING"

    argv = (str(valkey_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
    return ProcessSpec(name, 1, argv, f"127.0.0.1:{port}", tmp_path / f"{name}.log", healthy)


async def test_the_dead_come_back_on_their_port_and_nobody_else_moves(tmp_path: Path) -> None:
    ports = Ports(str(tmp_path))
    specs = [valkey(tmp_path, name, ports.take(name)) for name in ("one", "two")]
    told: list[str] = []
    state = tmp_path / "mesh.json"
    async with Guardian() as guardian:
        async with Supervisor(guardian, specs, MODEL, state, told.append, QUICK) as mesh:
            await mesh.wait_ready()
            before = MeshState.load(state)
            assert before.ready
            assert before.model == MODEL
            for deaths in (1, 2, 3):
                pid = MeshState.load(state).processes["one"].pid
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda old=pid: MeshState.load(state).processes["one"].pid != old)  # type: ignore[misc]
                await eventually(lambda: MeshState.load(state).ready)
                assert MeshState.load(state).processes["one"].restarts == deaths
                assert await valkey_health(specs[0].address) == "SERVING"
            after = MeshState.load(state)
            assert after.processes["two"] == before.processes["two"]
            assert after.processes["one"].address == before.processes["one"].address
        assert not state.exists()
        assert not any(alive(p.pid) for p in after.processes.values())
    assert "one was killed by SIGKILL; it is started again in 0.01 s" in told
    assert any(line.startswith("one is ready again") for line in told)
    ports.release()


@pytest.mark.parametrize(("status", "starts"), [(1, 3), (2, 1)])
async def test_what_never_comes_up_is_given_up_with_the_end_of_its_log(
    tmp_path: Path, status: int, starts: int
) -> None:
    spec = shell(tmp_path, "router-1", f"echo no such model; exit {status}", no)
    spec.log.write_text("of an older start\n")
    async with (
        Guardian() as guardian,
        Supervisor(guardian, [spec], MODEL, tmp_path / "mesh.json", print, QUICK) as mesh,
    ):
        with pytest.raises(StartError, match=rf"router-1 ended with status {status}\..*:\n  no such model$"):
            await mesh.wait_ready()
    assert spec.log.read_text().count("no such model") == starts


async def test_what_ignores_sigterm_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    spec = ProcessSpec(
        "stubborn", 0, ("/bin/sh", "-c", f"trap '' TERM; sleep 600 & echo $! > {child}; wait; wait"),
        "127.0.0.1:1", tmp_path / "log", yes, stop_within_s=0.05,
    )  # fmt: skip
    async with Guardian() as guardian:
        async with Supervisor(guardian, [spec], MODEL, tmp_path / "mesh.json", print) as mesh:
            await mesh.wait_ready()
            await eventually(lambda: child.exists() and child.read_text().strip() != "")
        await eventually(lambda: not alive(int(child.read_text())))


async def test_what_a_dead_process_leaves_behind_dies_before_it_is_started_again(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    spec = shell(tmp_path, "worker-1", f"sleep 600 & echo $! >> {pids}; wait")
    async with (
        Guardian() as guardian,
        Supervisor(guardian, [spec], MODEL, tmp_path / "mesh.json", print, QUICK) as mesh,
    ):
        await mesh.wait_ready()
        await eventually(lambda: pids.exists() and len(pids.read_text().split()) == 1)
        os.kill(mesh.children["worker-1"].pid, signal.SIGKILL)
        await eventually(lambda: len(pids.read_text().split()) == 2)
        first, second = map(int, pids.read_text().split())
        await eventually(lambda: not alive(first))
        assert alive(second)
    await eventually(lambda: not alive(second))


async def test_a_mesh_without_its_guardian_goes_on(tmp_path: Path) -> None:
    spec = shell(tmp_path, "quota", "exec sleep 600")
    async with (
        Guardian() as guardian,
        Supervisor(guardian, [spec], MODEL, tmp_path / "mesh.json", print, QUICK) as mesh,
    ):
        await mesh.wait_ready()
        guardian._process.kill()
        await guardian._process.wait()
        first = mesh.children["quota"].pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: mesh.children["quota"].pid != first and mesh.children["quota"].phase is Phase.READY)
        second = mesh.children["quota"].pid
    assert not alive(second)


async def test_tiers_stop_one_after_the_other(tmp_path: Path) -> None:
    order = tmp_path / "order"
    specs = [
        shell(
            tmp_path,
            name,
            f"trap 'echo {name} >> {order}; exit 0' TERM; echo up; while :; do sleep 0.02; done",
            tier=tier,
        )
        for name, tier in (("valkey", 3), ("router-1", 0), ("quota", 2), ("worker-1", 1))
    ]
    async with Guardian() as guardian, Supervisor(guardian, specs, MODEL, tmp_path / "mesh.json", print):
        await eventually(lambda: all(spec.log.exists() and "up" in spec.log.read_text() for spec in specs))
    assert order.read_text().split() == ["router-1", "worker-1", "quota", "valkey"]


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    """The launcher's child and grandchild are gone soon after kill -9 of the launcher."""
    pids = tmp_path / "pids"
    script = f"""
import asyncio, subprocess
from forebay.cli.guardian import Guardian
async def main():
    async with Guardian() as guardian:
        command = ["/bin/sh", "-c", "sleep 600 & echo $$ $! > {pids}; wait"]
        await guardian.spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    launcher = subprocess.Popen([sys.executable, "-c", script])

    async def started_then_gone() -> None:
        await eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        family = [int(pid) for pid in pids.read_text().split()]
        assert all(alive(pid) for pid in family)
        launcher.kill()
        launcher.wait()
        await eventually(lambda: not any(alive(pid) for pid in family))

    asyncio.run(started_then_gone())


async def test_health_of_nobody_is_unreachable(tmp_path: Path) -> None:
    ports = Ports("nobody")
    address = f"127.0.0.1:{ports.take('nobody')}"
    certificate = operator_certificate(DataDir(tmp_path))
    assert await service_health("quota", address, certificate) == "UNREACHABLE"
    assert await valkey_health(address) == "UNREACHABLE"
    ports.release()
