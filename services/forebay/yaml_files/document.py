"""A YAML file as plain values that remembers on which line each of them stands."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forebay.yaml_files.scalars import plain_value

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
}
_SYNTAX = "look here for a wrong indent, colon, quote or bracket"


_PLAIN, _TEXT, _MERGE = "plain", "tag:yaml.org,2002:str", "<<"
_LINE_ENDS = re.compile(r"\r\n|\r|\n")


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
            raise _Refused(_TOO_DEEP, _index(self.peek_event()))
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Leaves unquoted scalars to `plain_value`."""
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def _index(event: Any) -> int:
    return int(event.start_mark.index)


def _shown(text: object) -> str:
    return repr(text) if len(str(text)) <= MAX_SHOWN else repr(str(text)[:MAX_SHOWN]) + "..."


class _Refused(yaml.YAMLError):
    """YAML that this module does not take; the message is ours."""

    def __init__(self, problem: str, index: int) -> None:
        super().__init__(problem)
        self.index = index


_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"


def _explained(text: str, error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """Returns where the parser refuses a text, and why."""
    mark = error.problem_mark or error.context_mark
    # The parser has a limit of its own for brackets, and reaches it before it yields the first value.
    depth = 0
    for found in _BRACKETS.finditer(text, 0, mark.index + 1 if mark else len(text)):
        depth += _STEP.get(found[0], 0)
        if depth > MAX_DEPTH:
            return found.start(), _TOO_DEEP
    kind = next((words for kind, words in _KINDS.items() if isinstance(error, kind)), _SYNTAX)
    return mark.index if mark else 0, f"{kind} ({error.problem})"


@dataclass(slots=True)
class Document:
    """One file.

    Attributes:
        file: where it was read from.
        nulls: whether a field may be there without a value.
        data: its content, with None for values that are reported; None if it cannot be read at all.
        problems: what is wrong with it, one a line, with file and line number.
    """

    file: Path
    nulls: bool = False
    data: Any = None
    problems: list[str] = field(default_factory=list)
    _lines: dict[Place, int] = field(default_factory=dict)
    _unclear: set[Place] = field(default_factory=set)
    _begins: list[int] = field(default_factory=list)
    _values: int = 0

    @classmethod
    def read(cls, file: Path, *, nulls: bool = False) -> Document:
        """Reads a file; whatever is wrong with it is in `problems`."""
        try:
            return cls.parse(file, file.read_bytes().decode("utf-8"), nulls=nulls)
        except OSError as error:
            return cls(file, problems=[f"{file}: cannot be read: {error.strerror}"])
        except UnicodeDecodeError:
            return cls(file, problems=[f"{file}: is not UTF-8"])

    @classmethod
    def parse(cls, file: Path, text: str, *, nulls: bool = False) -> Document:
        """Takes a file's text; whatever is wrong with it is in `problems`."""
        document = cls(file, nulls)
        text = text.removeprefix("\ufeff")  # the parser does not count it
        document._begins = [0, *(found.end() for found in _LINE_ENDS.finditer(text))]
        try:
            document._parse(text)
        except _Refused as error:
            document._no_yaml(error.index, str(error))
        except yaml.MarkedYAMLError as error:
            document._no_yaml(*_explained(text, error))
        except yaml.reader.ReaderError as error:
            before = text.encode(errors="replace")[: error.position].decode(errors="ignore")
            document._no_yaml(len(before), "a character is not allowed, such as a control character")
        except (yaml.YAMLError, UnicodeError):
            document._no_yaml(0, "a character is not allowed, such as half a character")
        return document

    def report(self, place: Place, problem: str) -> None:
        """Adds a problem of the value at `place`, with the line of it or of the nearest value around it.

        Of a value that is reported as unclear already, there is nothing more to say.
        """
        if place in self._unclear:
            return
        self._report(place, self.line_of(place) or self._lines.get((), 1), problem)

    def line_of(self, place: Place) -> int | None:
        """Returns the line of a value, or of the nearest value around it; None where nothing is said of it."""
        return next((self._lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self._lines), None)

    def _report(self, place: Place, line: int, problem: str) -> None:
        where = ".".join(str(part) for part in place)
        self.problems.append(f"{self.file}:{line}: {where + ': ' if where else ''}{problem}")

    def _no_yaml(self, index: int, problem: str) -> None:
        self.problems.append(f"{self.file}:{self._line(index)}: is not YAML: {problem}")

    def _line(self, index: int) -> int:
        """Returns the line on which a character stands, as editors count; the parser has further ends of lines."""
        return bisect_right(self._begins, index)

    def _parse(self, text: str) -> None:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                self.data = self._value(root, ())
        finally:
            loader.dispose()

    def _value(self, node: yaml.Node, place: Place, line: int | None = None) -> Any:
        """Returns the value of a node, whose line is that of its key if it has one."""
        self._values += 1
        if self._values > MAX_VALUES or len(place) > MAX_DEPTH:
            raise _Refused("holds too much once its aliases are written out", node.start_mark.index)
        self._lines[place] = line or self._line(node.start_mark.index)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in ("map", "seq"):
            raise _Refused(f"the tag {_shown(node.tag)} is not allowed", node.start_mark.index)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, number)) for number, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for name, key, value in self._pairs(node, place, node.start_mark.index):
            values[name] = self._value(value, (*place, name), self._line(key.start_mark.index))
        return values

    def _pairs(
        self, node: yaml.Node, place: Place, index: int, depth: int = 0
    ) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Yields a mapping's names, keys and values: its own, and then what it merges besides; `index` says where it is named."""
        if depth > MAX_DEPTH or not isinstance(node, yaml.MappingNode):
            raise _Refused("<< must name mappings, and not itself", index)
        own: dict[str, int] = {}
        merged: list[tuple[yaml.Node, int]] = []
        for key, value in node.value:
            line = self._line(key.start_mark.index)
            if isinstance(key, yaml.ScalarNode) and key.tag == _PLAIN and key.value == _MERGE:
                others = value.value if isinstance(value, yaml.SequenceNode) else [value]
                merged += [(other, key.start_mark.index) for other in others]
                continue
            name = self._name(key, place, line)
            if name in own:  # YAML's own rule is that the last one wins, in silence
                self._report((*place, name), own[name], f"is given a second time, on line {line}")
            elif name is not None:
                own[name] = line
                yield name, key, value
        seen = set(own)
        for other, named_at in merged:
            self._values += 1  # merging the same mapping again and again is work, too
            if self._values > MAX_VALUES:
                raise _Refused("holds too much once its aliases are written out", named_at)
            for name, key, value in self._pairs(other, place, named_at, depth + 1):
                if name not in seen:
                    seen.add(name)
                    yield name, key, value

    def _name(self, key: yaml.Node, place: Place, line: int) -> str | None:
        """Returns a key; None for one that is no text, which is reported."""
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused("a list or a mapping cannot be a name", key.start_mark.index)
        if key.tag == _TEXT:
            return str(key.value)
        name = self._scalar(key, (*place, key.value), line)
        if isinstance(name, str):
            return name
        if not self.problems or not self.problems[-1].startswith(f"{self.file}:{line}: "):
            what = "there is no name before the colon" if name is None else f"{key.value} is no text; quote it"
            self._report((*place, key.value), line, what)
        return None

    def _scalar(self, node: yaml.ScalarNode, place: Place, key_line: int = 0) -> Any:
        """Returns a scalar's value; reports one that readers of YAML do not agree on, or that must not be missing."""
        if node.tag == _TEXT:
            return node.value
        if node.tag != _PLAIN:
            raise _Refused(f"the tag {_shown(node.tag)} is not allowed", node.start_mark.index)
        line = key_line or self._lines[place]
        try:
            value = plain_value(node.value)
        except ValueError as error:
            self._unclear.add(place)
            self._report(place, line, str(error))
            return None
        if value is None and place and not key_line and not self.nulls:
            self._unclear.add(place)
            self._report(place, line, "has no value; leave it out to say nothing of it, or write [] for an empty list")
        return value
