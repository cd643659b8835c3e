"""What is shown while a mesh starts."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from forebay.cli.progress import StartProgress
from forebay.cli.supervisor import Child, Phase, ProcessSpec


async def healthy() -> bool:
    return True


def child(name: str, doing: str) -> Child:
    return Child(ProcessSpec(name, 0, ("true",), "127.0.0.1:1", Path(f"{name}.log"), healthy, doing))


def test_without_a_terminal_each_step_is_a_line() -> None:
    output = io.StringIO()
    children = {"quota": child("quota", "starting"), "worker-1": child("worker-1", "loading the model")}
    progress = StartProgress(Console(file=output, width=100), children)
    with progress.shown():
        progress.tick()
        progress.tick()
        children["quota"].enter(Phase.READY)
        progress.tick()
        children["worker-1"].enter(Phase.DEAD)
        progress.tick()
        children["worker-1"].enter(Phase.STARTING)
        progress.tick()
        children["worker-1"].enter(Phase.READY)
    assert re.sub(r"\d+ s", "… s", output.getvalue()).splitlines() == [
        "quota        ready after … s",
        "worker-1     ended, is started again; see worker-1.log",
        "worker-1     loading the model, … s",
        "worker-1     ready after … s",
    ]


def test_a_terminal_shows_all_of_them_at_once() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    children = {"quota": child("quota", "starting"), "worker-1": child("worker-1", "loading the model")}
    children["quota"].enter(Phase.READY)
    with console.capture() as shown:
        console.print(StartProgress(console, children))
    assert "✓" in shown.get()
    assert re.search(r"loading the model, \d+ s", shown.get())
