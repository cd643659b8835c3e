"""The spool's records, and what they say after a crash.

    <crc32 of the JSON, 8 hex digits> <JSON> newline

The JSON is a usage event (the latest one of an attempt counts: its start, a checkpoint or its end), or the id of an attempt
that is done with, because metering has its event or because it never reached the engine. Values stand in arrays, in the
order of their class's fields: that takes a third of the time and of the bytes of objects. One record a line: a person can
read them, and damage stays in its line.
"""

from __future__ import annotations

import enum
import json
import zlib
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.usage import Attribution, Outcome, Place, Trace, UsageEvent


@dataclass(frozen=True, slots=True)
class Replay:
    """What a spool holds.

    Attributes:
        events: the latest of each attempt that is not done with, in the order in which they were written. Those of attempts
            that had not ended say LOST.
        unreadable: lines that are damaged, or that another version wrote.
        torn_bytes: after the last whole line; a crash in the middle of a write leaves them.
    """

    events: list[UsageEvent]
    unreadable: list[bytes]
    torn_bytes: int


def to_record(event: UsageEvent) -> bytes:
    """Returns the record of an event."""
    return _line(event)


def done_record(id: AttemptId) -> bytes:
    """Returns the record that an attempt is done with."""
    return _line(id)


def replay(content: bytes) -> Replay:
    """Reads records, one after the other, up to where they end or are torn."""
    *lines, torn = content.split(b"\n")
    live: dict[AttemptId, UsageEvent] = {}
    unreadable = []
    for line in lines:
        try:
            record = _read(line)
        except (TypeError, ValueError):
            unreadable.append(line)
            continue
        if isinstance(record, AttemptId):
            live.pop(record, None)
        else:
            live.pop(record.id, None)
            live[record.id] = record
    return Replay(list(live.values()), unreadable, len(torn))


_VALUES = {
    kind: attrgetter(*(field.name for field in fields(kind)))
    for kind in (UsageEvent, AttemptId, Attribution, Place, Trace)
}


def _plain(value: Any) -> object:
    return value.value if isinstance(value, enum.Enum) else _VALUES[type(value)](value)


_encode = json.JSONEncoder(default=_plain, ensure_ascii=False, separators=(",", ":")).encode


def _line(value: object) -> bytes:
    body = _encode(value).encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _read(line: bytes) -> UsageEvent | AttemptId:
    crc, _, body = line.partition(b" ")
    if crc != b"%08x" % zlib.crc32(body):
        raise ValueError("the checksum is wrong")
    value = json.loads(body)
    if len(value) == len(fields(AttemptId)):
        return AttemptId(*value)
    id, attribution, place, *_, outcome, trace = value
    value[:3] = AttemptId(*id), Attribution(*attribution), Place(*place)
    value[-2:] = Outcome(outcome), Trace(*trace)
    return UsageEvent(*value)
