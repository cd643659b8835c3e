"""kill -9 in the middle: what was acknowledged is in the ledger, once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from forebay.api.metering.v1 import metering_pb2_grpc
from forebay.metering.domain.entry import LedgerEntry
from forebay.metering.domain.selection import UsageFilter
from forebay.metering.sqlite_ledger import open_ledger
from forebay.rpc.client import connect

from .doubles import Reporter
from .samples import request_id, usage_event

EVENTS = [usage_event(number) for number in range(4_000)]
CHUNK = 50
UNACKNOWLEDGED = 500


@asynccontextmanager
async def metering(config: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """A real process, killed with -9 at the end, and a stub for it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forebay.metering", "--config", str(config)),
        env=os.environ | environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        address = ""
        while not address:
            line = json.loads(await process.stderr.readline())
            address = line.get("address", "") if line["event"] == "listening" else ""
        async with connect(address, caller="test") as channel:
            yield process, metering_pb2_grpc.MeteringServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def rows(path: Path) -> Sequence[LedgerEntry]:
    async with open_ledger(path) as ledger:
        return (await ledger.read(0, UsageFilter(), len(EVENTS) + 1)).entries


@pytest.mark.slow
async def test_kill_9_loses_and_doubles_nothing(tmp_path: Path) -> None:
    ledger, config = tmp_path / "ledger.db", tmp_path / "metering.yaml"
    config.write_text(yaml.safe_dump({"id": "metering-1", "ledger_path": str(ledger)}))
    safe = 0  # so many of EVENTS, from the first, were acknowledged
    for _ in range(3):
        async with metering(config) as (process, stub):
            reporter = Reporter(stub)
            await reporter.hello()
            sent = safe
            while reporter.acknowledged < 700:
                while sent - safe - reporter.acknowledged < UNACKNOWLEDGED:
                    await reporter.send(*EVENTS[sent : sent + CHUNK])
                    sent += CHUNK
                await reporter.hear()
            process.kill()
            safe += reporter.acknowledged
        found = await rows(ledger)
        assert [entry.row.position for entry in found] == list(range(1, len(found) + 1))
        assert [entry.row.event.request_id for entry in found] == [request_id(n) for n in range(len(found))]
        assert safe <= len(found) <= sent
    async with metering(config) as (_, stub):
        reporter = Reporter(stub)
        await reporter.hello()
        for first in range(safe, len(EVENTS), UNACKNOWLEDGED):
            await reporter.send(*EVENTS[first : first + UNACKNOWLEDGED])
            await reporter.all_acknowledged()
    assert [entry.row.event for entry in await rows(ledger)] == EVENTS


@pytest.mark.slow
@pytest.mark.parametrize(("point", "durable"), [("metering.before_commit", 0), ("metering.after_commit", 1)])
async def test_dying_around_a_commit_acknowledges_nothing_and_the_event_comes_again(
    tmp_path: Path, point: str, durable: int
) -> None:
    ledger, config, armed = tmp_path / "ledger.db", tmp_path / "metering.yaml", tmp_path / point
    config.write_text(yaml.safe_dump({"id": "metering-1", "ledger_path": str(ledger)}))
    armed.touch()
    async with metering(config, FOREBAY_KILL_POINTS=str(tmp_path)) as (process, stub):
        reporter = Reporter(stub)
        await reporter.hello()
        await reporter.send(EVENTS[0])
        with pytest.raises(grpc.aio.AioRpcError):
            await reporter.all_acknowledged()
        assert await process.wait() == -signal.SIGKILL
    assert not armed.exists()
    assert len(await rows(ledger)) == durable
    async with metering(config) as (_, stub):
        reporter = Reporter(stub)
        await reporter.hello()
        await reporter.send(EVENTS[0])
        await reporter.all_acknowledged()
    assert [entry.row.event for entry in await rows(ledger)] == EVENTS[:1]
