"""A YAML file as plain values that remembers on which line each of them stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Where in a file: the keys and numbers that lead to a value.
Place = tuple[Any, ...]

# Nobody's file is so deep, nor does it hold so much with every alias written out: a few lines of aliases make billions of values.
MAX_DEPTH = 32
MAX_VALUES = 1_000_000


class _Loader(yaml.composer.Composer, yaml.CSafeLoader):
    """Parses in C and composes here: libyaml's own composer calls itself for each level, to the end of the stack and beyond."""

    def __init__(self, text: str) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.CSafeLoader.__init__(self, text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See Composer."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"is nested more than {MAX_DEPTH} deep", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See BaseConstructor; what a scalar cannot be, such as a 13th month, is said with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise _refused(str(error), node) from None


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


@dataclass(slots=True)
class Document:
    """One file.

    Attributes:
        file: where it was read from.
        data: its content; None if it cannot be read.
        problems: what is wrong with it, one a line, with file and line number.
    """

    file: Path
    data: Any = None
    problems: list[str] = field(default_factory=list)
    _lines: dict[Place, int] = field(default_factory=dict)
    _values: int = 0

    @classmethod
    def read(cls, file: Path) -> Document:
        """Reads a file; whatever is wrong with it is in `problems`."""
        try:
            return cls.parse(file, file.read_text("utf-8"))
        except OSError as error:
            return cls(file, problems=[f"{file}: cannot be read: {error.strerror}"])
        except UnicodeDecodeError:
            return cls(file, problems=[f"{file}: is not UTF-8"])

    @classmethod
    def parse(cls, file: Path, text: str) -> Document:
        """Takes a file's text; whatever is wrong with it is in `problems`."""
        document = cls(file)
        try:
            document._parse(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            document.problems.append(f"{file}:{line}: is not YAML: {error.problem}")
        except yaml.YAMLError as error:
            document.problems.append(f"{file}: is not YAML: {error}")
        return document

    def report(self, place: Place, problem: str) -> None:
        """Adds a problem of the value at `place`, with the line of it or of the nearest value around it."""
        known = next((place[:end] for end in range(len(place), -1, -1) if place[:end] in self._lines), ())
        where = ".".join(str(part) for part in place)
        self.problems.append(f"{self.file}:{self._lines.get(known, 1)}: {where + ': ' if where else ''}{problem}")

    def _parse(self, text: str) -> None:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                self._locate(root, ())
                self.data = loader.construct_document(root)
        finally:
            loader.dispose()

    def _locate(self, node: yaml.Node, place: Place) -> None:
        self._values += 1
        if self._values > MAX_VALUES or len(place) > MAX_DEPTH:
            raise _refused("holds too much once its aliases are written out", node)
        self._lines[place] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._locate(item, (*place, number))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*place, str(key.value))
                if inner in self._lines:  # YAML's own rule is that the last one wins, in silence
                    self.report(inner, f"is given a second time, on line {key.start_mark.line + 1}")
                self._locate(value, inner)
                self._lines[inner] = key.start_mark.line + 1
