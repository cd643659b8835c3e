"""`--set FIELD=VALUE`: fields of a tenant, a plan or a key, by the names and in the units of the files.

A weight is 2.5 and a budget 0.0003 dollars here, as in a tenants file; in the contract they are 2,500 thousandths and 300,000
nano-USD.
The contract's own names and units are taken as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from forebay.words import FILE_NAMES, exact_span, file_name, instead_of, parse_span
from forebay.yaml_files.document import parse_value

# Enumerations are written as people say them.
PREFIXES = {"service_class": "SERVICE_CLASS_", "loss_policy": "LOSS_POLICY_"}

# What something is known by, and what the mesh alone makes.
_FIXED = frozenset({"tenant_id", "key_id", "name", "hash", "revoked", "isolation_key", "etag"})
# People write `models`, of which the message has two fields: an old one, and one that can be empty.
_SCOPE = "model_scope"
_WHOLE = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32)


@dataclass(frozen=True, slots=True)
class _Unit:
    """How many of the contract's units make one of the files', and what is allowed of the files'."""

    scale: int
    least: Decimal
    most: int


_UNITS = {
    "weight": _Unit(1_000, Decimal("0.001"), 1_000),
    "daily_budget_usd": _Unit(10**9, Decimal(0), 10**6),
    "monthly_budget_usd": _Unit(10**9, Decimal(0), 10**6),
    "usd_per_1000_tokens": _Unit(10**12, Decimal(0), 1_000),
}
_CONTRACT_NAMES = {name: contract for contract, name in FILE_NAMES.items()}


def assign(message: Message, settings: Sequence[str]) -> list[str]:
    """Sets fields given as path=value; returns the paths by the contract's names.

    Raises:
        ValueError: a setting is not of that form, or no such field can hold the value.
    """
    paths = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} must be FIELD=VALUE, such as limits.tokens_per_minute=5000")
        contract, field = _find(message.DESCRIPTOR, path)
        outer, _, name = contract.rpartition(".")
        value = {name: _read(field, path, text)}
        try:
            json_format.ParseDict({outer: value} if outer else value, message)
        except json_format.ParseError:
            raise ValueError(f"{path} cannot be {text!r}") from None
        paths.append(contract)
    return paths


def contract_paths(message: Message, paths: Sequence[str]) -> list[str]:
    """Returns the contract's names of fields.

    Raises:
        ValueError: there is no such field.
    """
    known = {"limits": "limits"}
    return [known.get(path) or _find(message.DESCRIPTOR, path)[0] for path in paths]


def shown(message: Message) -> Iterator[tuple[str, str]]:
    """Yields the fields of a message that are set, by the names and in the units in which they are set."""
    for field, value in message.ListFields():
        if field.name != "models":
            yield from _shown(field, file_name(field.name), value)


def shown_path(path: str) -> str:
    """Returns the name by which a field of the contract is shown and set."""
    return "models" if path == _SCOPE else file_name(path)


def _find(descriptor: Any, path: str) -> tuple[str, FieldDescriptor]:
    """Returns the contract's path of a field that can be set, and the field."""
    fields = _settable(descriptor)
    if path in fields:
        return fields[path]
    by_contract = dict(fields.values())
    if path in by_contract:
        return path, by_contract[path]
    raise ValueError(f"{path!r} is no field that can be set; {instead_of(path, fields)}")


def _settable(descriptor: Any) -> Mapping[str, tuple[str, FieldDescriptor]]:
    """Returns what can be set, by the name that people know."""
    fields: dict[str, tuple[str, FieldDescriptor]] = {}
    for field in descriptor.fields:
        if field.name == "limits":
            for limit in field.message_type.fields:
                fields[f"limits.{file_name(limit.name)}"] = f"limits.{limit.name}", limit
        elif field.name == _SCOPE:
            fields["models"] = _SCOPE, field
        elif field.name not in _FIXED and field.name != "models":
            fields[file_name(field.name)] = field.name, field
    return fields


def _read(field: FieldDescriptor, path: str, text: str) -> Any:
    """Returns the JSON form of a value that is written as text."""
    if field.enum_type or (field.type == field.TYPE_STRING and not field.is_repeated):
        return _json(field, path, text)
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ValueError(f"{path} must be {_expected(field, path)}, not {text!r}: {error}") from None
    return _json(field, path, value)


def _json(field: FieldDescriptor, path: str, value: Any) -> Any:
    """Returns the JSON form of a value; `path` is what people call the field."""
    kind = field.message_type.full_name if field.message_type else ""
    if field.name == _SCOPE:
        if _is_list_of_texts(value):
            return {"models": value}
    elif field.message_type and field.message_type.GetOptions().map_entry:
        if isinstance(value, dict):
            inner = field.message_type.fields_by_name["value"]
            return {name: _json(inner, f"{path}.{name}", part) for name, part in value.items()}
    elif field.is_repeated:
        if field.message_type and isinstance(value, list):
            return [_members(field.message_type, f"{path}.{n}", part) for n, part in enumerate(value, 1)]
        if not field.message_type and _is_list_of_texts(value):
            return value
    elif kind == "google.protobuf.Duration":
        return f"{parse_span(str(value)):.9f}s"
    elif kind == "google.protobuf.Timestamp":
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    elif kind:
        return _members(field.message_type, path, value)
    else:
        read = _scalar(field, path.rpartition(".")[2], value)
        if read is not None:
            return read
    raise ValueError(f"{path} must be {_expected(field, path)}, not {_written(value)}")


def _members(descriptor: Any, path: str, value: Any) -> dict[str, Any]:
    """Returns the JSON form of a message that is written as a mapping."""
    known = {file_name(field.name): field for field in descriptor.fields}
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold {', '.join(known)}, such as {{{next(iter(known))}: ...}}")
    members = {}
    for name, part in value.items():
        field = known.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            raise ValueError(f"{path}: {name!r} is not known; {instead_of(name, known)}")
        members[field.name] = _json(field, f"{path}.{name}", part)
    return members


def _scalar(field: FieldDescriptor, name: str, value: Any) -> Any:
    """Returns a number, a truth value, a text or an enumeration's name in JSON; None for what is none."""
    if field.enum_type:
        text = f"{PREFIXES[field.name]}{str(value).upper()}"
        return text if text in [each.name for each in field.enum_type.values[1:]] else None
    if field.cpp_type == field.CPPTYPE_BOOL:
        return value if isinstance(value, bool) else None
    if field.type == field.TYPE_STRING:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name in _CONTRACT_NAMES:
        unit, exact = _UNITS[name], Decimal(str(value))
        if not unit.least <= exact <= unit.most or exact * unit.scale % 1:
            return None
        return int(exact * unit.scale)
    return value if field.cpp_type in _WHOLE and isinstance(value, int) else None


def _expected(field: FieldDescriptor, path: str) -> str:
    """Returns what a field takes, in words."""
    unit = _UNITS.get(path.rpartition(".")[2])
    if unit is not None:
        return f"a number from {unit.least:f} to {unit.most:,}, in steps of {Decimal(1) / unit.scale:f}"
    if field.enum_type:
        return "one of " + ", ".join(
            value.name.removeprefix(PREFIXES[field.name]).lower() for value in field.enum_type.values[1:]
        )
    if field.name == _SCOPE:
        return 'a list such as [a, b], [] for none or ["*"] for all'
    if field.message_type and field.message_type.full_name == "google.protobuf.Timestamp":
        return "a time such as 2030-12-31T00:00:00Z"
    if field.is_repeated and not field.message_type:
        return "a list such as [a, b]"
    if field.message_type:
        return "written as {name: value}"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "true or false"
    return "a whole number" if field.cpp_type in _WHOLE else "text"


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"'{value}'"


def _shown(field: FieldDescriptor | None, path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields paths and texts of a value and of what is in it."""
    if field is not None and field.name == _SCOPE:
        yield "models", ", ".join(value.models) or "none"
    elif field is not None and field.message_type and field.message_type.GetOptions().map_entry:
        for name in sorted(value):
            yield from _shown(None, f"{path}.{name}", value[name])
    elif field is not None and field.is_repeated:
        if field.message_type:
            for number, part in enumerate(value, 1):
                yield from _shown(None, f"{path}.{number}", part)
        else:
            yield path, ", ".join(value)
    elif isinstance(value, Message):
        kind = value.DESCRIPTOR.full_name
        if kind == "google.protobuf.Duration":
            yield path, exact_span(value.seconds)  # type: ignore[attr-defined]
        elif kind == "google.protobuf.Timestamp":
            at = datetime.fromtimestamp(value.seconds, UTC)  # type: ignore[attr-defined]
            yield path, at.strftime("%Y-%m-%dT%H:%M:%SZ")
        else:
            for inner, part in value.ListFields():
                yield from _shown(inner, f"{path}.{file_name(inner.name)}", part)
    elif field is not None and field.enum_type:
        name = field.enum_type.values_by_number[value].name
        yield path, name.removeprefix(PREFIXES.get(field.name, "")).lower()
    else:
        yield path, _text(path, value)


def _text(path: str, value: Any) -> str:
    unit = _UNITS.get(path.rpartition(".")[2])
    if unit is not None:
        exact = Decimal(value) / unit.scale
        return f"{exact.normalize():f}"
    return str(value).lower() if isinstance(value, bool) else str(value)
