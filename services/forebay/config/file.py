"""A configuration file: its values, and on which line each of them stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forebay.config.errors import ConfigError

# Where in the file: the keys and numbers that lead to a value.
Place = tuple[str | int, ...]

# What YAML 1.1 reads as another number than people do: 010 is 8, and 1:30 is 90.
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


_LOOK_FOR = "look for a wrong indent, colon, quote or bracket"
# What PyYAML raises besides its own errors: for a 13th month, a thousand brackets, a tag for truth or time before something else.
_NOT_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One file, read.

    Attributes:
        path: where it is; None for no file at all.
        values: the fields.
    """

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    _lines: dict[Place, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Reads a file.

        Raises:
            ConfigError: it cannot be read, is not YAML, names a field twice, or holds a number that is easily misread.
        """
        lines: dict[Place, int] = {}
        problems: list[str] = []
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text)
            _locate(yaml.compose(text, yaml.SafeLoader), (), lines, problems)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{path}{line}: is not YAML: {_LOOK_FOR} ({error.problem})") from None
        except _NOT_YAML:
            raise ConfigError(f"{path}: is not YAML: {_LOOK_FOR}, or a date that does not exist") from None
        if problems:
            raise ConfigError("\n".join(f"{path}:{problem}" for problem in problems))
        if values is None:
            return cls(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: must hold `field: value` lines")
        return cls(path, {str(key): value for key, value in values.items()}, lines)

    def where(self, place: Place) -> str:
        """Returns file and line of a value, or of the nearest value around it; the file alone where it says nothing of it."""
        for end in range(len(place), 0, -1):
            if place[:end] in self._lines:
                return f"{self.path}:{self._lines[place[:end]]}"
        return str(self.path)

    def has(self, name: str) -> bool:
        """Returns whether the file sets a field."""
        return name in self.values


def _locate(node: yaml.Node | None, place: Place, lines: dict[Place, int], problems: list[str]) -> None:
    if node is None or (place in lines and not place):
        return
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _locate(item, (*place, number), lines, problems)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines and lines[inner] != line:  # YAML's own rule is that the last one wins, in silence
                problems.append(f"{line}: {key.value}: is given a second time; the first is on line {lines[inner]}")
            lines[inner] = line
            _locate(value, inner, lines, problems)
    elif node.tag in _NUMBERS and _AMBIGUOUS.fullmatch(node.value):
        problems.append(
            f"{node.start_mark.line + 1}: {'.'.join(map(str, place))}: {node.value} is another number in YAML than it looks; "
            "write it in decimal digits, or in quotes where it is a text"
        )
