"""The console that commands print to."""

from __future__ import annotations

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console

_FILE_WIDTH = 160


def terminal(*, stderr: bool = False) -> Console:
    """Returns a console that shows text as it is; into a file or a pipe it writes lines as long as tables need."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def print_json(message: Message) -> None:
    """Prints a message as one line of JSON."""
    print(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))
