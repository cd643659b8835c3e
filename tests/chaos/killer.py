"""Carries out a plan's disruptions."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from forebay.testing.movable_clock import MovableClock

from .disk import SmallDisk, bound_files
from .lives import LOOK_EVERY_S, Lives
from .plan import KEPT_FOR_EACH, RUN_AHEAD, Disruption, Plan, Strike
from .records import Struck

# For a killed process to be healthy again, and for an armed point to be reached.
PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What strikes are made with.

    Attributes:
        points: the directory named by FOREBAY_KILL_POINTS.
        clock: that of all processes.
        disk: under the mesh's data.
        redis_address: host:port.
    """

    points: Path
    clock: MovableClock
    disk: SmallDisk
    redis_address: str


class Killer:
    """Strikes as planned, but never a kind of process of which one is still starting, or paused.

    Attributes:
        missed: kill points at which nobody has died, yet.
        struck: what was carried out, and is over.
    """

    def __init__(
        self, plan: Plan, lives: Lives, tools: Tools, begun: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        """Prepares; `begun` returns how many requests have begun, `say` is told of each disruption."""
        self._lives = lives
        self._tools = tools
        self._begun = begun
        self._say = say
        self._left = list(plan.disruptions)
        self._requests = len(plan.asks)
        self._more = 0
        self.missed = set(plan.points)
        self.struck: list[Struck] = []

    @property
    def horizon(self) -> float:
        """How many requests may have begun by now: the load waits for the plan, so that neither ends without the other.

        Some are kept for each disruption that is left, because nobody would come to its kill point once all have begun.
        """
        if not self._left:
            return math.inf
        at = self._left[0].at
        kept = KEPT_FOR_EACH * len(self._left)
        return max(at, min(at + RUN_AHEAD, self._requests - kept)) + self._more

    async def run(self) -> None:
        """Carries out everything; whatever ends it, nothing stays paused, full or at another time."""
        async with asyncio.TaskGroup() as lasting:
            while self._left:
                disruption = self._left[0]
                while self._begun() < disruption.at:
                    await asyncio.sleep(LOOK_EVERY_S)
                await _within(PATIENCE_S, lambda: self._lives.whole(disruption.kinds))  # noqa: B023 - awaited at once
                self._say(f"{self._begun():5} begun: {disruption}")
                if disruption.strike is Strike.KILL:
                    await self._kill(disruption)
                else:
                    lasting.create_task(self._last(disruption))
                self._left.pop(0)

    async def _last(self, disruption: Disruption) -> None:
        """Carries out a strike that takes its time, beside others."""
        began = time.monotonic()
        strikes: dict[Strike, Callable[[Disruption], Awaitable[None]]] = {
            Strike.PAUSE: self._pause,
            Strike.CLOCK: self._move_clock,
            Strike.FULL_DISK: self._fill_disk,
            Strike.FILE_SIZE: self._bound_files,
            Strike.LOST_KEY: self._lose_key,
        }
        await strikes[disruption.strike](disruption)
        self.struck.append(Struck(disruption, began, time.monotonic()))

    async def _kill(self, disruption: Disruption) -> None:
        began = time.monotonic()
        armed = self._tools.points / disruption.point
        if disruption.point:
            armed.touch()
        for name in disruption.names:
            self._lives.kill(name)
        if disruption.point:
            await self._trip(disruption, armed)
        self.struck.append(Struck(disruption, began, time.monotonic()))

    async def _pause(self, disruption: Disruption) -> None:
        try:
            for name in disruption.names:
                self._lives.pause(name)
            await asyncio.sleep(disruption.seconds)
        finally:
            for name in disruption.names:
                self._lives.resume(name)

    async def _move_clock(self, disruption: Disruption) -> None:
        clock, pids = self._tools.clock, self._pids(disruption)
        try:
            for pid in pids:
                clock.set(disruption.ahead_s, pid)
            await asyncio.sleep(disruption.seconds)
            if disruption.ends_in_death:
                for name in disruption.names:
                    self._lives.kill(name)
        finally:
            for pid in pids:
                clock.set(0.0, pid)

    async def _fill_disk(self, disruption: Disruption) -> None:
        # A bound on a file's length is a signal, too, of which Valkey dies.
        pids = [self._lives.pid(name) for name in disruption.names if name != "valkey"]
        writers = [pid for pid in pids if pid is not None]
        try:
            end = time.monotonic() + disruption.seconds
            while time.monotonic() < end:  # again and again: who is there gives room back, too
                self._tools.disk.fill(writers)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._tools.disk.empty(writers)

    async def _bound_files(self, disruption: Disruption) -> None:
        pids = self._pids(disruption)
        try:
            for pid in pids:
                bound_files(pid)
            await asyncio.sleep(disruption.seconds)
        finally:
            for pid in pids:
                bound_files(pid, bound=False)

    async def _lose_key(self, disruption: Disruption) -> None:
        """Deletes a key once it is there."""
        redis: Any = Redis.from_url(f"redis://{self._tools.redis_address}/0")
        end = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < end:
                try:
                    keys = [key async for key in redis.scan_iter(disruption.key, count=1_000)]
                    if keys and await redis.delete(*keys):
                        return
                except (RedisError, OSError):
                    pass  # it is away for a moment
                await asyncio.sleep(LOOK_EVERY_S)
            raise RuntimeError(f"{disruption.key} has not been there for {PATIENCE_S:g} s")
        finally:
            await redis.aclose()

    def _pids(self, disruption: Disruption) -> Sequence[int]:
        return [pid for pid in map(self._lives.pid, disruption.names) if pid is not None]

    async def _trip(self, disruption: Disruption, armed: Path) -> None:
        if await _within(PATIENCE_S, self._goes_off(armed)):
            self.missed.discard(disruption.point)
            await asyncio.sleep(2 * LOOK_EVERY_S)  # until the death has been seen
        else:
            armed.unlink(missing_ok=True)

    def _goes_off(self, armed: Path) -> Callable[[], bool]:
        """Returns a question to be asked again and again: whether somebody has died at a point.

        All that may begin may be over before the point is armed, and then nobody would ever come to it. So while it is waited
        for, one more request may begin every second.
        """
        asked = 0

        def gone() -> bool:
            nonlocal asked
            asked += 1
            if asked % round(1.0 / LOOK_EVERY_S) == 0:
                self._more += 1
            return not armed.exists()

        return gone


async def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Waits until something holds; returns whether it came to hold in time."""
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return False
    return True
