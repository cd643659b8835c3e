"""How a service process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

HANGS = """
import asyncio
from typing import ClassVar

from forebay.config import ServiceConfig
from forebay.lifecycle import run_service
from forebay.rpc.server import RpcServer

class Config(ServiceConfig):
    service: ClassVar[str] = "scheduler"

def turn_for_ever():
    while True:
        pass

async def build(config, stack):
    asyncio.get_running_loop().call_later(0.2, turn_for_ever)
    return RpcServer(config.listen)

run_service(Config, build, hung_after_s=1.0)
"""


@pytest.mark.slow
def test_a_process_whose_event_loop_hangs_ends_and_says_where() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS],
        env={"PYTHONPATH": ":".join(sys.path), "FOREBAY_SCHEDULER_ID": "scheduler-1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1
    assert "turn_for_ever" in ended.stderr
