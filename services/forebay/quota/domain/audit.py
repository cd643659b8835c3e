"""The audit log: who did what, or was refused it.

Events are numbered without a gap, and the hash of each covers the one before: what is changed or taken out afterwards is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum

# One line more is the caller's reason.
MAX_CHANGES = 63
MAX_CHANGE_CHARACTERS = 256
# What the log must not hold: secrets, and text that may be another's.
_SECRET = frozenset({"hash", "isolation_key", "system_prompt"})
ORIGIN = "0" * 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something was not done; the code is google.rpc.Code's number."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Action:
    """What was done or refused.

    Attributes:
        at: seconds since the epoch.
        actor: role and name, such as admin/alice.
        action: such as RevokeKey.
        tenant_id: about which tenant; empty for none or several.
        subject: about what, such as key:abc.
        changes: "path: before -> after" lines.
        refusal: None when it was done.
        request_id: the caller's.
    """

    at: float
    actor: str
    action: str
    tenant_id: str = ""
    subject: str = ""
    changes: tuple[str, ...] = ()
    refusal: Refusal | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """An action in its place in the log."""

    number: int
    action: Action
    hash: str


def following(number: int, last_hash: str, action: Action) -> AuditEvent:
    """Returns the event after the one of that number and hash; 0 and ORIGIN before the first."""
    text = json.dumps([last_hash, number + 1, asdict(action)], sort_keys=True)
    return AuditEvent(number + 1, action, hashlib.sha256(text.encode()).hexdigest())


def unbroken(events: Iterable[AuditEvent]) -> bool:
    """Whether events from the first on are as they were appended."""
    number, last_hash = 0, ORIGIN
    for event in events:
        if event != following(number, last_hash, event.action):
            return False
        number, last_hash = event.number, event.hash
    return True


def changes_between(before: object, after: object, label: str = "") -> tuple[str, ...]:
    """Returns what differs between two values of one dataclass, a line each; None stands for one that is not there.

    Of a value that is new, what is empty or false is left out, but for lists: an empty one allows nothing.
    """
    old, new = dict(_flat(before, label)), dict(_flat(after, label))
    lines = []
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was != now and (before is not None or now or isinstance(now, tuple)):
            secret = path.rpartition(".")[2] in _SECRET
            text = f"{path}: changed" if secret else f"{path}: {_text(path, was)} -> {_text(path, now)}"
            lines.append(text[:MAX_CHANGE_CHARACTERS])
    if len(lines) > MAX_CHANGES:
        lines[MAX_CHANGES - 1 :] = [f"and {len(lines) - MAX_CHANGES + 1} more"]
    return tuple(lines)


def _flat(value: object, path: str) -> Iterable[tuple[str, object]]:
    parts: Iterable[tuple[object, object]]
    if is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        parts = enumerate(value, 1)
    else:
        if value is not None:
            yield path, value
        return
    for name, part in parts:
        yield from _flat(part, f"{path}.{name}".lstrip("."))


def _text(path: str, value: object) -> str:
    match value:
        case None:
            return "unset"
        case Enum():
            return value.name.lower()
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(map(str, value)) or "none"
        case float() if path.endswith("_at"):
            return datetime.fromtimestamp(value, UTC).isoformat(" ", "seconds")
    return str(value)
