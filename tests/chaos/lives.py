"""Watches the processes of a mesh and pauses them: when each was born, became healthy and died, and whether kill -9 ended it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import time
from collections.abc import Collection
from contextlib import suppress

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
        self._log = mesh.log.open(encoding="utf-8")
        self._log.seek(0, os.SEEK_END)
        self._line = ""
        self._present: dict[str, Life] = {}
        self._paused: dict[str, int] = {}
        self.all: list[Life] = []
        self.look()

    async def watch(self) -> None:
        """Looks until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def serving(self, name: str) -> bool:
        """Returns whether a process is alive, healthy and not paused."""
        life = self._present[name]
        return life.ready is not None and life.died is None and name not in self._paused

    def whole(self, kinds: Collection[str]) -> bool:
        """Returns whether every process of these kinds is alive and healthy."""
        return all(self.serving(name) for name in self._present if kind_of(name) in kinds)

    def kill(self, name: str) -> None:
        """Ends a process by kill -9, unless it is dead already."""
        life = self._present[name]
        if life.died is None:
            with suppress(ProcessLookupError):
                os.kill(life.pid, signal.SIGKILL)
            life.died = time.monotonic()

    def pid(self, name: str) -> int | None:
        """Returns the id of a process of the mesh or of its keepers; None if it is dead."""
        if name == "launcher":
            return self._mesh.launcher_pid
        if name == "guardian":
            return self._mesh.guardian_pid
        life = self._present[name]
        return life.pid if life.died is None else None

    def pause(self, name: str) -> None:
        """Stops a process, unless it is dead; `resume` has it go on."""
        pid = self.pid(name)
        if pid is None:
            return
        os.kill(pid, signal.SIGSTOP)
        self._paused[name] = pid
        if name in self._present:
            self._present[name].pauses.append((time.monotonic(), math.inf))

    def resume(self, name: str) -> None:
        """Has a process go on that was paused, unless it has been killed meanwhile."""
        pid = self._paused.pop(name, None)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        for life in self.all:
            if life.name == name and life.pid == pid:
                life.pauses[-1] = (life.pauses[-1][0], time.monotonic())

    def look(self) -> None:
        """Takes note of what has changed."""
        now = time.monotonic()
        try:
            state = self._mesh.state()
        except (OSError, json.JSONDecodeError):
            state = {"ready": False, "processes": {}}  # a full disk
        for name, process in state["processes"].items():
            life = self._present.get(name)
            if life is None or self._is_news(life, process["pid"]):
                life = self._begin(name, process["pid"], now)
            if life.died is None and not _is_alive(life.pid):
                life.died = now
            if state["ready"] and life.died is None and life.ready is None and life.pid == process["pid"]:
                life.ready = now
        self._read_log(now)

    def _is_news(self, life: Life, pid: int) -> bool:
        """Returns whether a state names another life than the present one, and not one before: on a full disk it grows old."""
        return life.pid != pid and all(known.pid != pid for known in self.all if known.name == life.name)

    def _begin(self, name: str, pid: int, now: float) -> Life:
        """Begins a process's next life, which ends the one before."""
        before = self._present.get(name)
        if before is not None and before.died is None:
            before.died = now
        self._present[name] = Life(name, pid, now)
        self.all.append(self._present[name])
        return self._present[name]

    def _read_log(self, now: float) -> None:
        *lines, self._line = (self._line + self._log.read()).split("\n")
        for line in lines:
            if said := _READY.match(line):
                life, pid = self._present[said[1]], int(said[2])
                if self._is_news(life, pid):
                    life = self._begin(said[1], pid, now)
                if life.pid == pid:
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
