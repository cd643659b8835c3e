"""`--set FIELD=VALUE`: fields of a tenant, a plan or a key, as people write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Enumerations are written as people say them.
PREFIXES = {"service_class": "SERVICE_CLASS_", "loss_policy": "LOSS_POLICY_"}

# What something is known by, and what the mesh alone makes.
_FIXED = frozenset({"tenant_id", "key_id", "name", "hash", "revoked", "isolation_key", "etag"})
_AS_WRITTEN = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
_WHOLE = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32)


class _Loader(yaml.SafeLoader):
    """Leaves times as they are written, which is how messages take them."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: str(node.value))


def assign(message: Message, settings: Sequence[str]) -> list[str]:
    """Sets fields given as path=value, values as in YAML; returns the paths.

    Raises:
        ValueError: a setting is not of that form, or no such field can hold the value.
    """
    fields = _fields(message.DESCRIPTOR)
    paths = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} must be FIELD=VALUE, such as limits.tokens_per_minute=5000")
        if path not in fields:
            raise ValueError(f"{path!r} is no field that can be set; there are {', '.join(fields)}")
        outer, _, name = path.rpartition(".")
        try:
            value = {name: _value(fields[path], text)}
            json_format.ParseDict({outer: value} if outer else value, message)
        except (json_format.ParseError, yaml.YAMLError) as error:
            raise ValueError(f"{path} must be {_expected(fields[path]) or error}, not {text!r}") from None
        paths.append(path)
    return paths


def _fields(descriptor: Any) -> Mapping[str, FieldDescriptor]:
    """Returns what can be set, by its path."""
    fields: dict[str, FieldDescriptor] = {}
    for field in descriptor.fields:
        if field.name == "limits":
            fields |= {f"limits.{limit.name}": limit for limit in field.message_type.fields}
        if field.name not in _FIXED:
            fields[field.name] = field
    return fields


def _value(field: FieldDescriptor, text: str) -> Any:
    if field.enum_type:
        return f"{PREFIXES[field.name]}{text.upper()}"
    as_written = field.type == field.TYPE_STRING or (field.message_type and field.message_type.full_name in _AS_WRITTEN)
    return text if as_written and not field.is_repeated else yaml.load(text, _Loader)  # noqa: S506 - a safe one


def _expected(field: FieldDescriptor) -> str:
    """Returns what a field takes, in words; empty where the library says it better."""
    if field.enum_type:
        return "one of " + ", ".join(
            value.name.removeprefix(PREFIXES[field.name]).lower() for value in field.enum_type.values[1:]
        )
    if field.is_repeated and not field.message_type:
        return "a list such as [a, b]"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "true or false"
    return "a whole number" if field.cpp_type in _WHOLE else ""
