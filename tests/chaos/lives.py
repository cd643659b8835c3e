"""Watches the processes of a mesh: when each was born, became healthy and died, and whether kill -9 ended it."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Collection

from forebay.testing.processes import MeshProcesses

from .plan import kind_of
from .records import Life

LOOK_EVERY_S = 0.03
# What the launcher says of a process after the start of the mesh.
_READY = re.compile(r"^(\S+) is ready again after .* process (\d+)$")
_CRASHED = re.compile(r"^(\S+) ended with status")


class Lives:
    """The lives of every process so far; `watch` keeps them up to date.

    Attributes:
        all: in the order of birth.
    """

    def __init__(self, mesh: MeshProcesses) -> None:
        """Begins with a mesh that is ready."""
        self._mesh = mesh
        self._log = (mesh.data / "up.log").open(encoding="utf-8")
        self._log.seek(0, os.SEEK_END)
        self._line = ""
        self._present: dict[str, Life] = {}
        self.all: list[Life] = []
        self.look()

    async def watch(self) -> None:
        """Looks until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def serving(self, name: str) -> bool:
        """Returns whether a process is alive and healthy."""
        life = self._present[name]
        return life.ready is not None and life.died is None

    def whole(self, kinds: Collection[str]) -> bool:
        """Returns whether every process of these kinds is alive and healthy."""
        return all(self.serving(name) for name in self._present if kind_of(name) in kinds)

    def kill(self, name: str) -> None:
        """Ends a process by kill -9, unless it is dead already."""
        if self._present[name].died is None:
            self._mesh.kill(name)
            self._present[name].died = time.monotonic()

    def look(self) -> None:
        """Takes note of what has changed."""
        now = time.monotonic()
        state = self._mesh.state()
        for name, process in state["processes"].items():
            life = self._present.get(name)
            if life is None or life.pid != process["pid"]:
                if life is not None and life.died is None:
                    life.died = now
                life = self._present[name] = Life(name, process["pid"], now)
                self.all.append(life)
            if life.died is None and not _is_alive(life.pid):
                life.died = now
            if state["ready"] and life.died is None and life.ready is None:
                life.ready = now
        self._read_log(now)

    def _read_log(self, now: float) -> None:
        *lines, self._line = (self._line + self._log.read()).split("\n")
        for line in lines:
            if said := _READY.match(line):
                life = self._present[said[1]]
                if life.pid == int(said[2]):
                    life.ready = now
            elif said := _CRASHED.match(line):
                last = [life for life in self.all if life.name == said[1] and life.died is not None][-1:]
                for life in last:
                    life.killed = False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
