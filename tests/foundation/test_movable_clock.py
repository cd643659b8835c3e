"""A real process's wall clock goes forward and back, alone or with everybody's; its monotonic clock does not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from forebay.testing.movable_clock import MovableClock
from forebay.testing.valkey import ValkeyServer

pytestmark = pytest.mark.slow

# Says its wall and monotonic times as often as it is asked; in a child of its own if asked so.
CLOCKS = """
import os, sys, time
for line in sys.stdin:
    if line == "child\\n" and os.fork():
        os.wait()
        continue
    print(time.time(), time.monotonic(), flush=True)
    if line == "child\\n":
        os._exit(0)
"""


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path)


@pytest.fixture
def start(clock: MovableClock) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLOCKS]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, env=clock.environment, stdin=pipe, stdout=pipe, text=True, process_group=0)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ahead(process: subprocess.Popen[str], ask: str = "now") -> tuple[int, int]:
    """Returns by how many seconds the process's wall and monotonic clocks are ahead of this one's."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(ask + "\n")
    process.stdin.flush()
    wall, monotonic = map(float, process.stdout.readline().split())
    return round((wall - time.time()) / 30) * 30, round((monotonic - time.monotonic()) / 30) * 30


def test_each_process_has_a_clock_that_goes_forward_and_back(
    clock: MovableClock, start: Callable[[], subprocess.Popen[str]]
) -> None:
    one, other = start(), start()
    assert ahead(one) == ahead(other) == (0, 0)
    clock.set(600, one.pid)
    assert ahead(one) == ahead(one, "child") == (600, 0)
    assert ahead(other) == (0, 0)
    clock.set(-300, one.pid)
    assert ahead(one) == (-300, 0)
    clock.set(60)
    assert clock.offset() == 60
    assert (ahead(one), ahead(other)) == ((-240, 0), (60, 0))


def test_the_time_of_a_real_valkey_moves(clock: MovableClock, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, clock=clock)
    server.start()
    try:
        with Redis(port=server.port) as client:
            for seconds in (600, -300, 0):
                server.set_clock(seconds)
                assert round((client.time()[0] - time.time()) / 30) * 30 == seconds
                in_script = int(client.eval("return redis.call('TIME')[1]", 0))  # type: ignore[arg-type]
                assert round((in_script - time.time()) / 30) * 30 == seconds
    finally:
        server.stop()
