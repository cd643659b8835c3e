"""Carries out a plan's disruptions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from .lives import LOOK_EVERY_S, Lives
from .plan import RUN_AHEAD, Disruption, Plan

# For a killed process to be healthy again, and for an armed point to be reached.
PATIENCE_S = 90.0


class Killer:
    """Kills as planned, but never strikes a kind of process of which one is still starting.

    Attributes:
        missed: kill points at which nobody has died, yet.
    """

    def __init__(self, plan: Plan, lives: Lives, points: Path, begun: Callable[[], int]) -> None:
        """Prepares.

        Args:
            plan: what to do.
            lives: of the processes to kill.
            points: the directory named by FOREBAY_KILL_POINTS.
            begun: returns how many requests have begun.
        """
        self._lives = lives
        self._points = points
        self._begun = begun
        self._left = list(plan.disruptions)
        self._more = 0
        self.missed = set(plan.points)

    @property
    def horizon(self) -> float:
        """How many requests may have begun by now: the load waits for the plan, so that neither ends without the other."""
        return self._left[0].at + RUN_AHEAD + self._more if self._left else math.inf

    async def run(self) -> None:
        """Carries out everything."""
        while self._left:
            disruption = self._left[0]
            while self._begun() < disruption.at:
                await asyncio.sleep(LOOK_EVERY_S)
            await _within(PATIENCE_S, lambda: self._lives.whole(disruption.kinds))  # noqa: B023 - awaited at once
            armed = self._points / disruption.point
            if disruption.point:
                armed.touch()
            for name in disruption.names:
                self._lives.kill(name)
            if disruption.point:
                await self._trip(disruption, armed)
            self._left.pop(0)

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
