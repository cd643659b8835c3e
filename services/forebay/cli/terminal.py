"""The console that commands print to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Any, cast

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console

from forebay.telemetry.sink import LineSink, SinkStream

_FILE_WIDTH = 1_000


def terminal(*, stderr: bool = False) -> Console:
    """Returns a console that shows text as it is; into a file or a pipe it writes lines as long as tables need."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def lasting_terminal(*, stderr: bool = False) -> Console:
    """Returns a console for a command that outlives its terminal: what cannot be shown is lost, and counted where it goes on."""
    # A standard stream that was closed when Python started is None, and its number may be any file's by now.
    stream, descriptor = (sys.stderr, 2) if stderr else (sys.stdout, 1)
    sink = LineSink(None if stream is None else descriptor, lambda lost: f"({lost} lines could not be shown)")
    console = Console(file=cast(IO[str], SinkStream(sink)), highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def in_lines(parts: Sequence[str], width: int) -> str:
    """Returns facts with dots between, in as many lines of at most `width` characters as they take."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + cell_len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def as_json(message: Message) -> dict[str, Any]:
    """Returns a message as JSON has it, zeros and empty lists included: a program is not to guess what is left out."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(value: Message | dict[str, Any]) -> None:
    """Prints a message, or what was made of one, as one line of JSON."""
    print(json.dumps(as_json(value) if isinstance(value, Message) else value, ensure_ascii=False))
