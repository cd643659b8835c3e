"""The console that commands print to."""

from __future__ import annotations

import sys
from typing import IO, cast

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console

from forebay.telemetry.sink import LineSink, SinkStream

_FILE_WIDTH = 160


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


def print_json(message: Message) -> None:
    """Prints a message as one line of JSON."""
    print(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))
