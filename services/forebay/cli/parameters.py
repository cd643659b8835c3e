"""Parameters that several commands have, and how a command's work is run."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

Data = Annotated[Path, typer.Option("--data", metavar="DIR", envvar="FOREBAY_DATA", help="The mesh's data directory.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", envvar="FOREBAY_KEY", help="A tenant's key.", show_envvar=True)]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Call with this sample tenant's development key.")]
Router = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A router; that of the mesh in --data by default.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work to its end, or until Ctrl-C, the usual end of a command that follows something."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
