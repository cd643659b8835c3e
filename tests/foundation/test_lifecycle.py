"""How a service process ends: asked to, asked twice, hung, with a dead component, and with nowhere to say so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

pytestmark = pytest.mark.slow

SERVICE = """
import asyncio, sys, threading, time
from typing import ClassVar

from opentelemetry import trace

from forebay import tasks
from forebay.config import ServiceConfig
from forebay.lifecycle import run_service
from forebay.rpc.server import RpcServer
from forebay.telemetry.logs import get_logger

log = get_logger("test")

class Config(ServiceConfig):
    service: ClassVar[str] = "scheduler"

def turn_for_ever():
    while True:
        pass

async def fails():
    await asyncio.sleep(0.1)
    raise ValueError("a bug")

async def returns():
    await asyncio.sleep(0.1)

class Busy(RpcServer):
    async def drain(self, grace_s):
        log.info("busy", grace_s=grace_s)
        await asyncio.sleep(grace_s)
        await super().drain(0)

async def hangs():
    log.info("building")
    await asyncio.Event().wait()

async def build(config, stack):
    loop = asyncio.get_running_loop()
    server = RpcServer(config.listen)
    {body}
    return server

run_service(Config, build, {arguments})
"""


def start(
    body: str = "pass", arguments: str = "", *, stderr: int | IO[bytes] | None = subprocess.PIPE, **env: str
) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE.replace("{body}", body).replace("{arguments}", arguments)],
        env={"PYTHONPATH": ":".join(sys.path), "FOREBAY_SCHEDULER_ID": "scheduler-1", **env},
        stderr=stderr,
        text=True,
    )


def lines_until(process: Any, event: str) -> Iterator[dict[str, Any]]:
    """Yields the process's log until an event of that name."""
    for line in process.stderr:
        if line.startswith("{"):
            fields = json.loads(line)
            yield fields
            if fields["event"] == event:
                return


def read_until(process: Any, event: str) -> list[dict[str, Any]]:
    lines = list(lines_until(process, event))
    assert lines
    assert lines[-1]["event"] == event
    return lines


def test_a_process_whose_event_loop_hangs_ends_and_says_where() -> None:
    process = start("loop.call_later(0.2, turn_for_ever)", "hung_after_s=1.0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "turn_for_ever" in said


@pytest.mark.parametrize("work", ["fails", "returns"])
@pytest.mark.parametrize("where", ["log", "full", "gone", "closed"])
def test_a_dead_component_ends_the_process_also_where_nothing_can_be_logged(
    work: str, where: str, tmp_path: Path
) -> None:
    body = f"await stack.enter_async_context(tasks.background({work}(), 'sweeper'))"
    if where == "closed":
        body = "import os; os.close(2); " + body
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "log").open("wb") as log, open("/dev/full", "wb") as full:
        process = start(body, stderr={"log": log, "full": full, "gone": writer, "closed": None}[where])
    os.close(writer)
    assert process.wait(timeout=60) == 1
    if where == "log":
        assert '"component": "sweeper"' in (tmp_path / "log").read_text()


def test_a_hung_loop_ends_the_process_with_standard_error_closed_from_the_start() -> None:
    script = SERVICE.replace("{body}", "loop.call_later(0.2, turn_for_ever)").replace("{arguments}", "hung_after_s=0.5")
    process = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -c "$0" 2>&-', script],
        env={"PYTHONPATH": ":".join(sys.path), "FOREBAY_SCHEDULER_ID": "scheduler-1"},
        timeout=60,
    )
    assert process.returncode == 1


def test_a_process_that_is_asked_to_stop_exits_with_0() -> None:
    process = start()
    read_until(process, "listening")
    process.send_signal(signal.SIGTERM)
    read_until(process, "stopped")
    assert process.wait(timeout=60) == 0


def test_asked_twice_it_waits_for_nobody() -> None:
    process = start("server = Busy(config.listen)", FOREBAY_SCHEDULER_DRAIN_S="3600")
    read_until(process, "listening")
    process.send_signal(signal.SIGTERM)
    assert read_until(process, "busy")[-1]["grace_s"] == 3600
    process.send_signal(signal.SIGTERM)
    assert read_until(process, "busy")[-1]["grace_s"] == 0
    assert process.wait(timeout=60) == 0


def test_it_can_be_stopped_before_it_has_started() -> None:
    process = start("await hangs()")
    read_until(process, "building")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


def test_what_hangs_at_the_end_is_named_and_left() -> None:
    body = "stack.callback(lambda: threading.Thread(target=time.sleep, args=[3600]).start())"
    process = start(body, "stop_within_s=0.5")
    read_until(process, "listening")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not ended in time" in said
    assert "Thread" in said


def test_a_collector_that_does_not_answer_delays_the_end_by_a_bound() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    body = "loop.call_later(0.1, lambda: trace.get_tracer('test').start_span('lost').end())"
    endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
    process = start(body, FOREBAY_SCHEDULER_OTLP_ENDPOINT=endpoint)
    read_until(process, "listening")
    connection, _ = silent.accept()  # the exporter waits for an answer now
    process.send_signal(signal.SIGTERM)
    lines = read_until(process, "stopped")
    assert any(line["event"].startswith("not all spans are sent") for line in lines)
    assert process.wait(timeout=60) == 0
    connection.close()
    silent.close()
