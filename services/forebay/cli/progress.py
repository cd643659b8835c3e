"""What is shown while a mesh starts: a live table on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from forebay.cli.supervisor import Child, Phase

_LIVE_PER_SECOND = 8
# Where lines are for a log, one that only says that time passes comes this often.
_LINE_EVERY_S = 10.0


class StartProgress:
    """Shows children on their way to health. On a terminal it draws itself anew; elsewhere `tick` prints what changed."""

    def __init__(self, console: Console, children: Mapping[str, Child]) -> None:
        self._console = console
        self._children = children
        self._spinners = {name: Spinner("dots") for name in children}
        self._began = time.monotonic()
        self._printed: dict[str, tuple[Phase, float]] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the children during the block."""
        if not self._console.is_terminal:
            yield
            self.tick()
            return
        with Live(self, console=self._console, refresh_per_second=_LIVE_PER_SECOND, transient=True):
            yield

    def tick(self) -> None:
        """Prints a line for each child that has news, where there is no terminal."""
        if self._console.is_terminal:
            return
        now = time.monotonic()
        for name, child in self._children.items():
            phase, at = self._printed.get(name, (None, now))
            if child.phase is not phase or (child.phase is not Phase.READY and now - at >= _LINE_EVERY_S):
                if phase is not None or child.phase is Phase.READY:
                    self._console.print(f"{name:<12} {self._what(child)}", markup=False)
                self._printed[name] = (child.phase, now)

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, child in self._children.items():
            mark: RenderableType = self._spinners[name]
            if child.phase is Phase.READY:
                mark = Text("✓", style="green")
            elif child.phase is Phase.DEAD:
                mark = Text("✗", style="red")
            table.add_row(mark, name, Text(self._what(child), style="dim"))
        return table

    def _what(self, child: Child) -> str:
        took = f"{(child.since if child.phase is Phase.READY else time.monotonic()) - self._began:.0f} s"
        match child.phase:
            case Phase.READY:
                return f"ready after {took}"
            case Phase.DEAD:
                return f"ended, is started again; see {child.spec.log}"
            case _:
                return f"{child.spec.doing}, {took}"
