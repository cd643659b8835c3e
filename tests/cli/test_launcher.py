"""The launcher where a terminal, a disk or an operator misbehaves: real meshes of real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.client import ForebayClient, MeshError
from forebay.testing.processes import MeshProcesses

pytestmark = pytest.mark.slow

SLOW = {"FOREBAY_WORKER_SIMULATED__SPEED": "0.02"}


async def eventually(holds: Callable[[], bool]) -> None:
    """Returns once `holds` does; the bound is there to end a test that fails."""
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.02)


def up(data: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "forebay.cli", "up", "--data", str(data), "--engine", "simulated", *arguments]


async def streamed(mesh: MeshProcesses, tokens: int, begun: asyncio.Event) -> int:
    """Returns how many tokens of a stream have come when it ends well."""
    count = 0
    async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
        async for event in client.stream("Tell me everything", max_tokens=tokens, ignore_eos=True):
            count += len(getattr(event, "token_ids", ()))
            begun.set()
    return count


async def test_a_stopped_router_lets_its_streams_end_and_comes_back_on_its_port(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "mesh", environment=SLOW) as mesh:
        begun = asyncio.Event()
        address, pid = mesh.router_address(), mesh.pid("router-1")
        stream = asyncio.create_task(streamed(mesh, 40, begun))
        await begun.wait()
        os.kill(pid, signal.SIGTERM)
        log = mesh.data / "up.log"
        await eventually(lambda: "router-1 is waiting for 1 request, at most 1" in log.read_text())
        async with ForebayClient(address, mesh.key("acme")) as client:
            with pytest.raises(MeshError, match="DRAINING"):
                await client.generate("One more", max_tokens=1)
        assert await stream == 40
        await eventually(lambda: mesh.pid("router-1") != pid and mesh.state()["ready"])
        assert mesh.router_address() == address


async def test_ctrl_c_waits_for_streams_and_ctrl_c_again_ends_them_typed(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "mesh", environment=SLOW) as mesh:
        begun = asyncio.Event()
        stream = asyncio.create_task(streamed(mesh, 4_000, begun))
        await begun.wait()
        log = mesh.data / "up.log"
        os.kill(mesh.launcher_pid, signal.SIGINT)
        await eventually(lambda: "at most 120 s; Ctrl-C again ends them now" in log.read_text())
        assert not stream.done()
        os.kill(mesh.launcher_pid, signal.SIGINT)
        with pytest.raises(MeshError) as cut_off:
            await stream
        assert cut_off.value.reason == "DRAINING"
        await eventually(lambda: "stopped" in log.read_text().splitlines())


async def test_a_mesh_started_again_has_its_ports_again(tmp_path: Path) -> None:
    with MeshProcesses(tmp_path / "mesh") as mesh:
        async with ForebayClient(mesh.router_address(), mesh.key("acme")) as client:
            await client.generate("Hello", max_tokens=1)
            before = {name: process["address"] for name, process in mesh.state()["processes"].items()}
            os.kill(mesh.launcher_pid, signal.SIGINT)
            await eventually(lambda: not (mesh.data / "mesh.json").exists())
    with MeshProcesses(tmp_path / "mesh") as mesh:
        assert {name: process["address"] for name, process in mesh.state()["processes"].items()} == before


@pytest.mark.parametrize("output", ["full", "gone", "closed"])
def test_a_launcher_that_can_show_nothing_keeps_the_mesh_running(tmp_path: Path, output: str) -> None:
    data = tmp_path / "mesh"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        if output == "closed":
            command = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *up(data)]
            launcher = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        else:
            to = {"full": full, "gone": writer}[output]
            launcher = subprocess.Popen(up(data), stdin=subprocess.DEVNULL, stdout=to, stderr=to)
    os.close(writer)
    mesh = MeshProcesses(data)
    mesh._process = launcher
    (data / "up.log").parent.mkdir(parents=True, exist_ok=True)
    (data / "up.log").touch()
    try:
        mesh.wait_ready()
        killed = mesh.kill("quota")
        while mesh.pid("quota") == killed or not mesh.state()["ready"]:
            assert launcher.poll() is None
            time.sleep(0.02)
    finally:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=120) == 0


def test_a_port_in_use_is_said_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        ended = subprocess.run(
            up(tmp_path / "mesh", "--router-port", str(port)), capture_output=True, text=True, timeout=120
        )
    assert ended.returncode == 1
    assert f"port {port} for router-1 cannot be used: process {os.getpid()} listens there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_first_start_that_fails_says_what_to_do_and_the_next_one_takes_the_corrected_file(tmp_path: Path) -> None:
    tenants = tmp_path / "own.yaml"
    tenants.write_text("tenants: {bench: {plan: no-such-plan}}\n")
    command = up(tmp_path / "mesh", "--tenants", str(tenants))
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert "there is no plan 'no-such-plan'" in failed.stderr
    assert "--tenants replaces them" in failed.stderr
    tenants.write_text("tenants: {bench: {plan: enterprise}}\n")
    with MeshProcesses(tmp_path / "mesh", tenants=tenants) as mesh:
        assert mesh.key("bench")


def test_ports_can_be_given(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        router, quota = one.getsockname()[1], two.getsockname()[1]
    data = tmp_path / "mesh"
    mesh = MeshProcesses(data)
    mesh._command += ["--router-port", str(router), "--port", f"quota={quota}"]
    with mesh:
        assert mesh.router_address() == f"127.0.0.1:{router}"
        assert mesh.state()["processes"]["quota"]["address"] == f"127.0.0.1:{quota}"
