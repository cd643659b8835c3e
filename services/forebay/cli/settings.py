"""`--set FIELD=VALUE`: fields of a tenant, a plan or a key in the words and the units of the tenants file.

A word is a field of the contract, except that weights are numbers and not thousandths, and money is in USD and not in nano-USD.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Enumerations are written as people say them.
PREFIXES = {"service_class": "SERVICE_CLASS_", "loss_policy": "LOSS_POLICY_"}

# What something is known by, and what the mesh alone makes.
_FIXED = frozenset({"tenant_id", "key_id", "name", "hash", "revoked", "isolation_key", "etag"})
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9_]*)(\.[0-9]+)?")
_SPAN = re.compile(r"([0-9]{1,9})\s?(s|m|min|h|d)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_CHANGE = re.compile(r"([a-z0-9_.\[\]-]+): (.*) -> (.*)", re.DOTALL)
_MAX_DIGITS = 40
_EXAMPLES = {
    "canary": "like {steps: [{percent: 10, holds_for: 1h}]}",
    "model_limits": "like {MODEL: {tokens_per_minute: 5000}}",
    "thresholds": "like {warn_percent: 80, throttle_percent: 100, hard_percent: 100}",
    "expires_at": "a time such as 2030-01-01T00:00:00Z",
}


@dataclass(frozen=True, slots=True)
class Word:
    """How people write one field.

    Attributes:
        name: the word, such as limits.daily_budget_usd.
        path: the field in the contract, such as limits.daily_budget_nano_usd.
        field: its descriptor.
        scale: how many units of the contract one unit of people is.
    """

    name: str
    path: str
    field: FieldDescriptor
    scale: int = 1


def words(descriptor: Any) -> Mapping[str, Word]:
    """Returns the fields of a tenant, a plan or a key that can be set, by the word for each."""
    found = [word for word in _words(descriptor) if word.path not in _FIXED]
    if any(word.path == "model_scope" for word in found):
        found = [word for word in found if word.path != "models"]
    return {word.name: word for word in found}


def assign(message: Message, settings: Sequence[str]) -> list[str]:
    """Sets fields given as word=value; returns their paths in the contract.

    Raises:
        ValueError: a setting is not of that form, no such field can hold the value, or a field is set twice.
    """
    known = words(message.DESCRIPTOR)
    paths: list[str] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} must be FIELD=VALUE, such as limits.tokens_per_minute=5000")
        word = find(known, name)
        if word.path in paths:
            raise ValueError(f"{name} is set twice; say it once")
        outer, _, inner = word.path.rpartition(".")
        value = {inner: _value(word, text)}
        try:
            json_format.ParseDict({outer: value} if outer else value, message)
        except (json_format.ParseError, RecursionError, OverflowError):
            raise _wrong(word, text) from None
        paths.append(word.path)
    return paths


def paths_of(descriptor: Any, names: Sequence[str]) -> list[str]:
    """Returns the paths in the contract of fields that are named by their words; `limits` stands for all limits.

    Raises:
        ValueError: there is no such field.
    """
    known = words(descriptor)
    return [find(known, name).path for name in names]


def find(known: Mapping[str, Word], name: str) -> Word:
    """Returns the field of a word.

    Raises:
        ValueError: there is none; says which may be meant.
    """
    if name in known:
        return known[name]
    for word in known.values():
        if word.path == name:
            raise ValueError(f"{name} is written as {word.name}, in {_unit(word)}")
    group, dot, leaf = name.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == group}
    candidates = siblings if siblings else {each: each for each in known}
    near = difflib.get_close_matches(leaf if siblings else name, candidates, n=1)
    leaves = {each.rpartition(".")[2]: each for each in known}
    if near or leaf in leaves:
        raise ValueError(
            f"{name!r} is no field that can be set; did you mean {candidates[near[0]] if near else leaves[leaf]}?"
        )
    there = f"{group} has" if dot and siblings else "there are"
    raise ValueError(f"{name!r} is no field that can be set; {there} {', '.join(candidates)}")


def described(message: Message) -> Iterator[tuple[str, str, str]]:
    """Yields path, word and value of each field that is set, in the words and units of `assign`."""
    known = {word.path: word for word in _words(message.DESCRIPTOR)}
    values = json_format.MessageToDict(message, preserving_proto_field_name=True)
    scope = values.pop("model_scope", None)
    if scope is not None:  # it goes before the older field of the same names, and may be empty
        values.pop("models", None)
    for path, value in _flat("", values):
        name, text = _said(known, path, value)
        yield path, name, text
    if scope is not None:
        yield "model_scope", "models", ", ".join(scope.get("models", ())) or "none"


def change_in_words(change: str) -> str:
    """Returns a line of the audit log, such as `weight_milli: unset -> 2500`, in the words and units of `assign`."""
    found = _CHANGE.fullmatch(change)
    if found is None:
        return change
    path, before, after = found.groups()
    outer, dot, leaf = path.rpartition(".")
    name, scale = _written(leaf)
    values = [
        _plain(Decimal(text) / scale, 2 if scale > 1_000 else 0) if text.isdecimal() else text
        for text in (before, after)
    ]
    return f"{outer}{dot}{name}: {values[0]} -> {values[1]}" if scale > 1 else change


def _words(descriptor: Any) -> Iterator[Word]:
    for field in descriptor.fields:
        if field.name == "limits":
            for limit in field.message_type.fields:
                name, scale = _written(limit.name)
                yield Word(f"limits.{name}", f"limits.{limit.name}", limit, scale)
        name, scale = _written(field.name)
        yield Word(name, field.name, field, scale)


def _written(name: str) -> tuple[str, int]:
    """Returns the word for a field of the contract, and how many of the contract's units one of its units is."""
    if name == "weight_milli":
        return "weight", 1_000
    if name == "nano_usd_per_million_tokens":
        return "usd_per_1000_tokens", 10**12
    if name == "model_scope":
        return "models", 1
    if name.endswith("_nano_usd"):
        return name.replace("_nano_usd", "_usd"), 10**9
    return name, 1


def _value(word: Word, text: str) -> Any:
    """Returns what a setting's text stands for, as protobuf's JSON has it."""
    field = word.field
    if field.name == "model_scope":
        return {"models": _strings(word, text)}
    if field.is_repeated and not field.message_type:
        return _strings(word, text)
    if field.enum_type:
        value = f"{PREFIXES[field.name]}{text.upper()}"
        if value not in field.enum_type.values_by_name or field.enum_type.values_by_name[value].number == 0:
            raise _wrong(word, text)
        return value
    if field.cpp_type == field.CPPTYPE_BOOL:
        if text not in ("true", "false"):
            raise _wrong(word, text)
        return text == "true"
    if field.cpp_type == field.CPPTYPE_STRING:
        return _utf8(word, text)
    if field.message_type is None:
        return _number(word, text)
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return text
    return _translated(word, _yaml(word, text), text)


def _number(word: Word, text: str) -> int:
    if _NUMBER.fullmatch(text) is None or len(text) > _MAX_DIGITS:
        raise _wrong(word, text)
    exact = Decimal(text.replace("_", "")) * word.scale
    if exact % 1:
        raise _wrong(word, text)
    most = (2**32 if word.field.cpp_type == word.field.CPPTYPE_UINT32 else 2**63) - 1
    if not 0 <= exact <= most:
        raise ValueError(f"{word.name} must be from 0 to {most // word.scale:,}, not {text}")
    return int(exact)


def _strings(word: Word, text: str) -> list[str]:
    value = _yaml(word, text)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise _wrong(word, text)
    return value


def _translated(word: Word, value: Any, text: str) -> Any:
    """Returns a nested value with the contract's names and units."""
    if isinstance(value, list):
        return [_translated(word, part, text) for part in value]
    if not isinstance(value, dict):
        return value
    translated: dict[str, Any] = {}
    for name, part in value.items():
        if not isinstance(name, str):
            raise _wrong(word, text)
        field = _inner(word.field, name)
        if field is not None:
            translated[field.path] = _number(field, str(part))
        elif name == "holds_for" and (found := _SPAN.fullmatch(str(part))):
            translated[name] = f"{int(found[1]) * _SECONDS[found[2]]}s"
        else:
            translated[name] = _translated(word, part, text)
    return translated


def _inner(outer: FieldDescriptor, name: str) -> Word | None:
    """Returns the limit of that name where the field holds limits by model."""
    if outer.name != "model_limits":
        return None
    limits: Any = outer.message_type
    for limit in limits.fields_by_name["value"].message_type.fields:
        written, scale = _written(limit.name)
        if written == name:
            return Word(f"{outer.name}...{name}", limit.name, limit, scale)
    return None


class _Loader(yaml.SafeLoader):
    """Reads values as YAML 1.2 has them, and leaves times as they are written, which is how messages take them."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses aliases, by which a short text could stand for an endless one."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)


def _plain_scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if node.value in ("true", "false"):
        return node.value == "true"
    return int(node.value) if re.fullmatch(r"-?(0|[1-9][0-9]{0,30})", node.value) else str(node.value)


for _tag in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain_scalar)


def _yaml(word: Word, text: str) -> Any:
    try:
        return yaml.load(_utf8(word, text), _Loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, RecursionError, ValueError):
        raise _wrong(word, text) from None


def _utf8(word: Word, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{word.name} must be UTF-8") from None
    return text


def _wrong(word: Word, text: str) -> ValueError:
    shown = repr(text) if len(text) <= 100 else f"{text[:100]!r}…"
    return ValueError(f"{word.name} must be {_expected(word)}, not {shown}")


def _expected(word: Word) -> str:
    """Returns what a field takes, in words."""
    field = word.field
    if field.name in _EXAMPLES:
        return _EXAMPLES[field.name]
    if field.enum_type:
        values = (value.name.removeprefix(PREFIXES[field.name]).lower() for value in field.enum_type.values[1:])
        return "one of " + ", ".join(values)
    if field.is_repeated or field.name == "model_scope":
        return "a list such as [a, b]"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "true or false"
    if field.message_type is not None:
        return "set field by field" if field.name == "limits" else f"a value of {field.message_type.name}"
    return _unit(word)


def _unit(word: Word) -> str:
    if word.scale == 1:
        return "a whole number" if word.name == word.path else "that word"
    if word.scale == 1_000:
        return "a number such as 2.5, in whole thousandths"
    return "USD, a number such as 1.50"


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        yield path, ", ".join(map(str, value))
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from _flat(f"{path}.{name}" if path else str(name), part)
    else:
        yield path, value


def _said(known: Mapping[str, Word], path: str, value: Any) -> tuple[str, str]:
    """Returns a field's word and its value, as `assign` takes them."""
    if path in ("model_scope", "model_scope.models"):
        return "models", str(value) or "none"
    if path in PREFIXES:
        return path, str(value).removeprefix(PREFIXES[path]).lower()
    if isinstance(value, bool):
        return path, str(value).lower()
    outer, dot, leaf = path.rpartition(".")
    word = known.get(path)
    name, scale = (word.name, word.scale) if word else (f"{outer}{dot}{_written(leaf)[0]}", _written(leaf)[1])
    if scale > 1:
        return name, _plain(Decimal(str(value)) / scale, 2 if scale > 1_000 else 0)
    if leaf == "holds_for" and (found := re.fullmatch(r"([0-9]+)s", str(value))):
        return name, _span(int(found[1]))
    return name, str(value)


def _span(seconds: int) -> str:
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


def _plain(number: Decimal, decimals: int) -> str:
    """Returns a number with all digits that are not zero, and at least so many after the point."""
    whole, _, rest = f"{number:f}".partition(".")
    rest = rest.rstrip("0").ljust(decimals, "0")
    return f"{whole}.{rest}" if rest else whole
