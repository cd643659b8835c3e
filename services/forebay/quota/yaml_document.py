"""A YAML file as plain values that remembers on which line each of them stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Where in a file: the keys and numbers that lead to a value.
Place = tuple[Any, ...]

# Nobody's file is so deep, nor does it hold so much with every alias written out: a few lines of aliases make billions of values.
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_SHOWN = 40

# Brackets, and quoted texts and comments, inside which a bracket is a character like any other.
_BRACKETS = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|(?:^|(?<=\s))\#[^\n]*|[\[\]{}]""", re.S)
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}

# The first words about each kind of error are ours, because every release of the parser words its own differently.
_KINDS: dict[type[yaml.MarkedYAMLError], str] = {
    yaml.composer.ComposerError: "an anchor (&name) or an alias (*name) is wrong, or a second document begins",
    yaml.constructor.ConstructorError: "this value or key has a form that is not allowed here",
}
_SYNTAX = "look here for a wrong indent, colon, quote or bracket"


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
            raise _refused(_TOO_DEEP, self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See BaseConstructor; what a scalar cannot be, such as a 13th month, is said with its line."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML's constructors raise what int(), datetime() and their own look-ups raise
            raise _refused(f"{_shown(node.value)} is no valid date, time, number or truth value", node) from None

    def refuse_tag(self, node: yaml.Node) -> Any:
        """Refuses a value whose tag is not one of YAML's own."""
        raise _refused(f"the tag {_shown(node.tag)} is not allowed", node)


_Loader.add_constructor(None, _Loader.refuse_tag)  # None stands for every tag that has no constructor


def _shown(text: object) -> str:
    return repr(text) if len(str(text)) <= MAX_SHOWN else repr(str(text)[:MAX_SHOWN]) + "..."


class _Refused(yaml.YAMLError):
    """YAML that this module does not take; the message is ours."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def _refused(problem: str, where: Any) -> _Refused:
    return _Refused(problem, where.start_mark.line + 1)


_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"


def _explained(text: str, error: yaml.MarkedYAMLError) -> str:
    """Returns `line: problem` of what the parser refuses."""
    mark = error.problem_mark or error.context_mark
    # The parser has a limit of its own for brackets, and reaches it before it yields the first value.
    depth = 0
    for found in _BRACKETS.finditer(text, 0, mark.index + 1 if mark else len(text)):
        depth += _STEP.get(found[0], 0)
        if depth > MAX_DEPTH:
            return f"{text.count(chr(10), 0, found.start()) + 1}: is not YAML: {_TOO_DEEP}"
    kind = next((words for kind, words in _KINDS.items() if isinstance(error, kind)), _SYNTAX)
    return f"{mark.line + 1 if mark else 1}: is not YAML: {kind} ({error.problem})"


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
        except _Refused as error:
            document.problems.append(f"{file}:{error.line}: is not YAML: {error}")
        except yaml.MarkedYAMLError as error:
            document.problems.append(f"{file}:{_explained(text, error)}")
        except yaml.reader.ReaderError as error:
            line = text.encode(errors="replace").count(b"\n", 0, error.position) + 1
            document.problems.append(
                f"{file}:{line}: is not YAML: a character is not allowed, such as a control character"
            )
        except (yaml.YAMLError, UnicodeError):
            document.problems.append(f"{file}:1: is not YAML: a character is not allowed, such as half a character")
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
