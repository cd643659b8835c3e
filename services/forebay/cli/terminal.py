"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console

_FILE_WIDTH = 160


def terminal(*, stderr: bool = False) -> Console:
    """Returns a console that shows text as it is; into a file or a pipe it writes lines as long as tables need."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console
