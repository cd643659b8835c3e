"""A worker offers itself once its engine serves and tenants are known, and not before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from forebay.lifecycle import background
from forebay.policy.watcher import PolicyWatcher
from forebay.worker.lifetime import serve_engine
from forebay.worker.scheduler_link import SchedulerLink

from .doubles import HandEngine
from .test_service import Bench


@dataclass
class Policies:
    snapshot: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_ready(self) -> None:
        await self.snapshot.wait()


@dataclass
class Link:
    offered: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        self.offered.set()


class SlowEngine(HandEngine):
    def __init__(self) -> None:
        super().__init__()
        self.loaded = asyncio.Event()

    async def start(self, sink: object) -> None:
        await self.loaded.wait()


async def test_it_waits_for_the_engine_and_for_policies() -> None:
    service, engine, policies, link = Bench().service, SlowEngine(), Policies(), Link()
    service.started = False
    serving = serve_engine(engine, service, cast(PolicyWatcher, policies), cast(SchedulerLink, link))
    async with background(serving, "engine", ends=True) as task:
        await asyncio.sleep(0)
        assert not service.started
        engine.loaded.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert service.started
        assert not link.offered.is_set()
        policies.snapshot.set()
        await task
    assert link.offered.is_set()
