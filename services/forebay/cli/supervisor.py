"""Keeps the processes of a mesh running: starts them, watches their health, restarts the one that dies, stops them in order.

Each process has one task here, and that task alone starts, reaps and restarts it; nothing else changes a `Child`. The order of
starting does not matter to the services. The order of stopping does to their clients: those who take calls go first, so that what
is in flight can end on services that are still there.
"""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals
from typing import IO

from forebay.cli.guardian import Guardian, kill_group
from forebay.cli.mesh_state import MeshState, ModelState, ProcessState
from forebay.cli.notices import Notices
from forebay.cli.restart import RestartPolicy

PROBE_INTERVAL_S = 0.2
# A process that dies this often before it was ever healthy has a reason that no restart will mend; one that ends with this status
# says so itself: its configuration is wrong.
HOPELESS_AFTER = 3
WRONG_CONFIGURATION = 2
# As a shell says it.
NOT_STARTED = 126
# How long a process may take to end that was told to do so at once.
HURRIED_S = 15.0
# After the state could not be written.
SAVE_AGAIN_S = 1.0

Probe = Callable[[], Awaitable[bool]]


class StartError(Exception):
    """A process does not come up; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What is to run.

    Attributes:
        name: such as router-1; unique in the mesh.
        tier: those of the lowest tier are stopped first.
        argv: the command.
        address: host:port where it listens.
        log: where its output goes.
        healthy: says whether it can do its job now; raises nothing and returns within seconds.
        doing: what it does until it is healthy, in words.
        stop_within_s: how long it may take to end by itself after SIGTERM.
    """

    name: str
    tier: int
    argv: tuple[str, ...]
    address: str
    log: Path
    healthy: Probe
    doing: str = "starting"
    stop_within_s: float = 15.0


class Phase(enum.Enum):
    """Where a process is in its life."""

    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"
    STOPPED = "stopped"


@dataclass(slots=True)
class Child:
    """One process as it is now.

    Attributes:
        pid: of the process, or of the last one while `phase` is DEAD; 0 before the first.
        since: when the present phase began, by the monotonic clock.
        deaths: deaths in a row without having been healthy in between.
        log_start: where the log of the present life begins.
        waits_for: what it was last heard to wait for before it ends.
        last_end: how the life before ended, in words; empty for none.
    """

    spec: ProcessSpec
    phase: Phase = Phase.STARTING
    pid: int = 0
    restarts: int = 0
    since: float = field(default_factory=time.monotonic)
    deaths: int = 0
    log_start: int = 0
    waits_for: str = ""
    last_end: str = ""

    def enter(self, phase: Phase) -> None:
        """Begins a phase."""
        self.phase = phase
        self.since = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self.pid > 0 and self.phase in (Phase.STARTING, Phase.READY)


class Supervisor:
    """The processes of one mesh.

    Args:
        guardian: starts them.
        specs: what is to run, in the order of starting.
        model: what it serves, for the state file.
        state_file: where the state is written at each change.
        announce: told, in a sentence, of each death and recovery once the mesh is ready.
        policy: when the dead are started again.
    """

    def __init__(
        self,
        guardian: Guardian,
        specs: Sequence[ProcessSpec],
        model: ModelState,
        state_file: Path,
        announce: Callable[[str], None],
        policy: RestartPolicy = RestartPolicy(),  # noqa: B008 - immutable
    ) -> None:
        self._guardian = guardian
        self._model = model
        self._state_file = state_file
        self._announce = announce
        self._policy = policy
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._saving: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()
        self._notices = Notices(self._heard)
        self._came_up = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.children: Mapping[str, Child] = {spec.name: Child(spec) for spec in specs}

    async def __aenter__(self) -> Supervisor:
        await self._notices.__aenter__()
        for name, child in self.children.items():
            self._tasks[name] = asyncio.create_task(self._keep_for_ever(child), name=name)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops everything, tier by tier, and takes the state file away."""
        self._stopping = True
        self._failed.cancel()
        for tier in sorted({child.spec.tier for child in self.children.values()}):
            await asyncio.gather(*(self._stop(c) for c in self.children.values() if c.spec.tier == tier))
        await self._notices.__aexit__(None, None, None)
        if self._saving is not None:
            self._saving.cancel()
        with suppress(OSError):
            self._state_file.unlink(missing_ok=True)

    async def wait_ready(self, tick: Callable[[], None] = lambda: None) -> None:
        """Returns once every process has been healthy; calls `tick` several times a second until then.

        Raises:
            StartError: one of them does not come up.
        """
        while not self._ready:
            if self._failed.done():
                self._failed.result()
            tick()
            await asyncio.sleep(PROBE_INTERVAL_S)
        self._came_up = True

    @property
    def _ready(self) -> bool:
        return all(child.phase is Phase.READY for child in self.children.values())

    async def _keep_for_ever(self, child: Child) -> None:
        """Keeps a process, whatever happens to the keeping itself."""
        while not self._stopping:
            try:
                await self._keep(child)
                return
            except Exception as error:
                if child.running:
                    kill_group(child.pid)
                child.enter(Phase.DEAD)
                self._tell(child, f"could not be looked after ({error!r}); it is started again")
                await asyncio.sleep(self._policy.longest_s)

    async def _keep(self, child: Child) -> None:
        """The life of one process, over all its restarts."""
        pause: float | None = None
        while not self._stopping:
            status, lived_s = await self._live(child)
            if self._stopping:
                break
            child.deaths += 1
            child.last_end = _ended(status)
            child.waits_for = ""
            child.enter(Phase.DEAD)
            self._save()
            if not self._came_up and (child.deaths >= HOPELESS_AFTER or status == WRONG_CONFIGURATION):
                self._give_up(child, status)
                return
            pause = self._policy.pause(pause, lived_s)
            self._tell(child, f"{_ended(status)}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            child.restarts += 1
        child.enter(Phase.STOPPED)

    async def _live(self, child: Child) -> tuple[int, float]:
        """One life of a process; returns its exit status and its length in seconds."""
        started = time.monotonic()
        try:
            with self._log_of(child) as log:
                process = await self._guardian.spawn(
                    child.spec.argv, stdout=log, stderr=log, environment=self._notices.environment
                )
        except OSError:  # no memory, no process: that may pass, and the pauses grow
            return NOT_STARTED, 0.0
        child.pid = process.pid
        child.enter(Phase.STARTING)
        self._save()
        probing = asyncio.create_task(self._probe(child))
        try:
            status = await process.wait()
        finally:
            probing.cancel()
        self._guardian.release(process.pid)
        return status, time.monotonic() - started

    def _log_of(self, child: Child) -> IO[bytes]:
        """Opens the log of a process; without one it runs all the same, and says nothing."""
        try:
            log = child.spec.log.open("ab")
        except OSError as error:
            self._tell(child, f"runs without a log: {child.spec.log} cannot be opened ({error.strerror})")
            return open(os.devnull, "ab")
        child.log_start = log.tell()
        return log

    async def _probe(self, child: Child) -> None:
        while not await _is_healthy(child.spec):  # noqa: ASYNC110 - another process sets no Event of ours
            await asyncio.sleep(PROBE_INTERVAL_S)
        took = time.monotonic() - child.since
        child.deaths = 0
        child.enter(Phase.READY)
        self._save()
        self._tell(child, f"is ready again after {took:.1f} s, process {child.pid}")

    async def _stop(self, child: Child) -> None:
        """Asks a process to end, waits for it, and then makes it end."""
        task = self._tasks[child.spec.name]
        if not child.running:
            task.cancel()
        else:
            _terminate(child)
        await self._ended_or_hurry(task, child.spec.stop_within_s)
        if not task.done() and self._hurry.is_set():
            _terminate(child)
            await asyncio.wait([task], timeout=HURRIED_S)
        if not task.done() and child.running:
            kill_group(child.pid)
        await asyncio.gather(task, return_exceptions=True)

    async def _ended_or_hurry(self, task: asyncio.Task[None], within_s: float) -> None:
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([task, hurry], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()

    def hurry(self) -> None:
        """Has processes that are being stopped wait for nothing: calls that still run are ended, and told why."""
        self._hurry.set()

    def kill(self) -> None:
        """Ends every process at once; for someone who will not wait for `__aexit__`."""
        for child in self.children.values():
            if child.running:
                kill_group(child.pid)

    def _heard(self, pid: int, fields: Mapping[str, str]) -> None:
        """Takes what a process says of itself, and tells what it waits for before it ends, each time that there is less of it."""
        child = next((child for child in self.children.values() if child.running and child.pid == pid), None)
        requests = fields.get("X_REQUESTS", "")
        if child is None or not requests.isdecimal() or child.waits_for == requests:
            return
        child.waits_for = requests
        status = "".join(filter(str.isprintable, fields.get("STATUS", "")))[:200]
        self._tell(child, f"is {status}" + ("; Ctrl-C again ends them now" if self._stopping else ""))

    def _give_up(self, child: Child, status: int) -> None:
        if not self._failed.done():
            self._failed.set_exception(
                StartError(f"{child.spec.name} {_ended(status)}. The end of {child.spec.log}:\n{_log_tail(child)}")
            )

    def _tell(self, child: Child, what: str) -> None:
        if self._came_up:
            self._announce(f"{child.spec.name} {what}")

    def _save(self) -> None:
        processes = {
            name: ProcessState(child.pid, child.spec.address, child.restarts, child.last_end)
            for name, child in self.children.items()
        }
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        try:
            MeshState(self._ready, self._model, processes).save(self._state_file)
        except OSError:  # a full disk makes the file stale; it must not end the mesh
            self._saving = asyncio.get_running_loop().call_later(SAVE_AGAIN_S, self._save)


def _terminate(child: Child) -> None:
    if child.running:
        with suppress(ProcessLookupError):
            os.kill(child.pid, SIGTERM)


async def _is_healthy(spec: ProcessSpec) -> bool:
    try:
        return await spec.healthy()
    except Exception:
        return False  # a certificate that is being replaced, no descriptor left: it is asked again


def _log_tail(child: Child) -> str:
    """Returns the last lines of the present life's log."""
    try:
        with child.spec.log.open("rb") as log:
            log.seek(child.log_start)
            lines = log.read().decode(errors="replace").splitlines()[-15:]
    except OSError as error:
        lines = [f"(it cannot be read: {error.strerror})"]
    return "\n".join(f"  {line}" for line in lines)


def _ended(status: int) -> str:
    return f"was killed by {Signals(-status).name}" if status < 0 else f"ended with status {status}"
