"""The long-lived tasks of a process: one that ends without being told to ends the process.

A process whose sweeper, session or watchdog has died looks healthy and is not. No task is started again inside the process,
because what it shared with others is then in an unknown state: the process says NOT_SERVING, ends what runs, and exits with
status 1, and whoever started it (`forebay up`, systemd, a kubelet) starts it afresh. The service's lifecycle hears of a failure
by `on_failure`; without a lifecycle, which is so in tests, the process is told to stop by SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from forebay.telemetry.logs import get_logger

log = get_logger("tasks")

# The process has one life, and its exit status tells how it ended.
_failed: list[str] = []


def _stop_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


_on_failure: Callable[[], None] = _stop_process


def on_failure(told: Callable[[], None]) -> None:
    """Has `told` called, on the event loop, each time that a component fails."""
    global _on_failure
    _on_failure = told


def failed() -> list[str]:
    """Returns the names of the components that have failed, in order."""
    return list(_failed)


def fail(name: str, error: BaseException | None = None) -> None:
    """Takes note that a component of this process is dead, and has the process end. Call it on the event loop."""
    log.error("component failed, the process ends", component=name, exc_info=error)
    _failed.append(name)
    _on_failure()


@asynccontextmanager
async def background(
    work: Coroutine[Any, Any, None], name: str, *, ends: bool = False
) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `work` beside the block and cancels it at the end of the block.

    Args:
        work: runs until it is cancelled, unless `ends`.
        name: for the log.
        ends: whether it may return by itself. It may never raise, nor be cancelled by anything but the end of the block.
    """
    task = watched(work, name, ends=ends)
    try:
        yield task
    finally:
        dismiss(task)
        await asyncio.gather(task, return_exceptions=True)


def watched(work: Coroutine[Any, Any, None], name: str, *, ends: bool = False) -> asyncio.Task[None]:
    """Starts a task on which this process depends; `dismiss` ends it."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_ended_well if ends else _ended_early)
    return task


def fail_on_error(task: asyncio.Task[None]) -> None:
    """Is a task's done callback: an error is the failure of a component, to return or to be cancelled is not."""
    if not task.cancelled() and task.exception() is not None:
        fail(task.get_name(), task.exception())


def dismiss(task: asyncio.Task[None]) -> None:
    """Cancels a watched task, whose end is nobody's failure from now on."""
    if task.done():
        return
    task.remove_done_callback(_ended_well)
    task.remove_done_callback(_ended_early)
    task.add_done_callback(_note)
    task.cancel()


def guarded(step: Callable[[], None], name: str) -> Callable[[], None]:
    """Returns `step` for `call_soon` and its like, where an error would only be logged: it is the failure of a component."""

    def run() -> None:
        try:
            step()
        except Exception as error:
            fail(name, error)

    return run


def _ended_early(task: asyncio.Task[None]) -> None:
    error = asyncio.CancelledError("cancelled from outside") if task.cancelled() else task.exception()
    fail(task.get_name(), error or RuntimeError("it returned, and should run until it is told to stop"))


def _ended_well(task: asyncio.Task[None]) -> None:
    if task.cancelled() or task.exception() is not None:
        _ended_early(task)


def _note(task: asyncio.Task[None]) -> None:
    """Logs an error on the way out, which changes nothing any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.warning("component failed while it was ended", component=task.get_name(), exc_info=error)
