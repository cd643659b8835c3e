"""The command's environment variables reach the services that it starts, so each of them must be known there."""

from __future__ import annotations

import re
from pathlib import Path

import forebay.cli
from forebay.config.environment import COMMAND_VARIABLES


def test_services_know_every_variable_of_the_command() -> None:
    sources = "\n".join(file.read_text() for file in Path(forebay.cli.__file__).parent.glob("*.py"))
    named = set(re.findall(r'envvar="(FOREBAY_\w+)"', sources))
    assert named
    assert named <= COMMAND_VARIABLES
