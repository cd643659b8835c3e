"""A row of the ledger, its one written form, and the chain that makes a later edit show.

The written form of a row is JSON with sorted keys and no spaces, in UTF-8. It is stored as it is hashed: the chain is
checked on the stored text, so that a field added to the event by a later release does not break the hashes of older
rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from forebay.metering.domain.charge import PriceLine, Usage
from forebay.metering.domain.event import NANO, Outcome, Source, UsageEvent
from forebay.metering.domain.prices import Item

# The hash before a tenant's first row.
GENESIS = bytes(32)


@dataclass(frozen=True, slots=True)
class Row:
    """What a row says.

    Attributes:
        position: dense and global, from 1.
        event: what is believed of the attempt as of this row.
        corrects: the position of the attempt's first row; 0 in that row itself.
        usage: what the row bills; in a correction the difference.
        lines: what the row charges; in a correction what is taken back and what is charged instead.
        recorded_at_ns: ns since the epoch.
    """

    position: int
    event: UsageEvent
    corrects: int
    usage: Usage
    lines: tuple[PriceLine, ...]
    recorded_at_ns: int

    @property
    def cost_nano_usd(self) -> int:
        """The sum of the lines."""
        return sum(line.amount_nano_usd for line in self.lines)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A row as it stands in the ledger.

    Attributes:
        body: the row's written form.
        chain_hash: SHA-256 over the chain_hash of the tenant's row before (32 zero bytes for its first) and `body`.
    """

    row: Row
    body: str
    chain_hash: bytes


def seal(row: Row, previous_hash: bytes) -> LedgerEntry:
    """Returns `row` as the next of its tenant's chain."""
    body = _write(
        {
            "position": row.position,
            "event": _event_values(row.event),
            "corrects": row.corrects,
            "usage": _values(row.usage),
            "lines": [_values(line) | {"amount_nano_usd": line.amount_nano_usd} for line in row.lines],
            "recorded_at_ns": row.recorded_at_ns,
        }
    )
    return LedgerEntry(row, body, hashlib.sha256(previous_hash + body.encode()).digest())


def unseal(body: str, chain_hash: bytes) -> LedgerEntry:
    """Returns the entry whose written form is `body`."""
    values = json.loads(body)
    lines = (
        PriceLine(Item(line["item"]), line["quantity"], line["nano_usd_per_million"], line["source"])
        for line in values["lines"]
    )
    row = Row(
        position=values["position"],
        event=_event(values["event"]),
        corrects=values["corrects"],
        usage=Usage(**values["usage"]),
        lines=tuple(lines),
        recorded_at_ns=values["recorded_at_ns"],
    )
    return LedgerEntry(row, body, chain_hash)


def write_event(event: UsageEvent) -> str:
    """Returns an event in the written form."""
    return _write(_event_values(event))


def read_event(text: str) -> UsageEvent:
    """Returns the event that `write_event` wrote."""
    return _event(json.loads(text))


def day(time_ns: int) -> str:
    """Returns the UTC day of a time, as 2026-11-30."""
    return datetime.fromtimestamp(time_ns // NANO, UTC).date().isoformat()


def _write(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _values(record: Any) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _event_values(event: UsageEvent) -> dict[str, Any]:
    return _values(event) | {"labels": dict(event.labels)}


def _event(values: dict[str, Any]) -> UsageEvent:
    return UsageEvent(**values | {"source": Source(values["source"]), "outcome": Outcome(values["outcome"])})
