"""Which rows a reader wants, how they add up, and the cursor that says how far a reader has come."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from forebay.errors import Code, FieldViolation, MeshError
from forebay.metering.domain.charge import Usage
from forebay.metering.domain.entry import day
from forebay.metering.domain.event import MAX_TEXT_BYTES, MAX_TIME_NS, NANO, Outcome, UsageEvent

MAX_VALUES = 1_000
MAX_EXCEPTIONS = 100_000
MAX_TOTALS = 10_000
DAY_NS = 86_400 * NANO

# Opaque to clients; the prefix leaves room for another kind of cursor.
_CURSOR = re.compile(r"v1:(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Selects rows; an empty field does not select.

    Attributes:
        except_request_ids: rows of these are not selected.
        finished_from_ns: attempts that ended at or after it. finished_before_ns: before it. None for no bound.
    """

    tenant_ids: frozenset[str] = frozenset()
    key_ids: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    request_ids: frozenset[str] = frozenset()
    except_request_ids: frozenset[str] = frozenset()
    outcomes: frozenset[Outcome] = frozenset()
    finished_from_ns: int | None = None
    finished_before_ns: int | None = None

    def matches(self, event: UsageEvent) -> bool:
        """Says whether a row of `event` is selected."""
        return (
            (not self.tenant_ids or event.tenant_id in self.tenant_ids)
            and (not self.key_ids or event.key_id in self.key_ids)
            and (not self.models or event.model in self.models)
            and (not self.request_ids or event.request_id in self.request_ids)
            and event.request_id not in self.except_request_ids
            and (not self.outcomes or event.outcome in self.outcomes)
            and (self.finished_from_ns is None or event.finished_at_ns >= self.finished_from_ns)
            and (self.finished_before_ns is None or event.finished_at_ns < self.finished_before_ns)
        )


def check_filter(selection: UsageFilter) -> None:
    """Refuses a filter that is out of bounds.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_FILTER.
    """
    violations = []
    for name in ("finished_from", "finished_before"):
        if not 0 <= (getattr(selection, f"{name}_ns") or 0) <= MAX_TIME_NS:
            violations.append(FieldViolation(f"filter.{name}", "must be a time from 1970 to 2262"))
    for name in ("tenant_ids", "key_ids", "models", "request_ids", "except_request_ids"):
        values: frozenset[str] = getattr(selection, name)
        most = MAX_EXCEPTIONS if name == "except_request_ids" else MAX_VALUES
        if len(values) > most or any(len(value.encode()) > MAX_TEXT_BYTES for value in values):
            right = f"must be at most {most:,}, each of at most {MAX_TEXT_BYTES:,} bytes"
            violations.append(FieldViolation(f"filter.{name}", right))
    if violations:
        message = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise MeshError(Code.INVALID_ARGUMENT, "BAD_FILTER", message, field_violations=violations)


class Dimension(enum.Enum):
    """Something to add up by."""

    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"
    DAY = "day"
    OUTCOME = "outcome"

    def of(self, event: UsageEvent) -> str:
        """Returns the event's value in this dimension."""
        match self:
            case Dimension.TENANT:
                return event.tenant_id
            case Dimension.KEY:
                return event.key_id
            case Dimension.MODEL:
                return event.model
            case Dimension.DAY:
                return day(event.finished_at_ns)
            case Dimension.OUTCOME:
                return event.outcome.value


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of the rows of one group."""

    group: tuple[str, ...]
    usage: Usage
    cost_nano_usd: int


def too_many_totals() -> MeshError:
    """Returns the error for a sum with more than MAX_TOTALS groups."""
    return MeshError(
        Code.OUT_OF_RANGE,
        "TOO_MANY_TOTALS",
        f"the sum has more than {MAX_TOTALS:,} groups; narrow the filter or add up by fewer dimensions",
    )


def write_cursor(position: int) -> str:
    """Returns the cursor of a reader that has seen everything up to `position`."""
    return f"v1:{position}"


def read_cursor(cursor: str, head: int) -> int:
    """Returns the position that a client's cursor stands for; empty is the beginning, "now" the ledger's end `head`.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_CURSOR; it is none of this ledger.
    """
    if not cursor:
        return 0
    if cursor == "now":
        return head
    match = _CURSOR.fullmatch(cursor)
    if match is None or int(match[1]) > head:
        raise MeshError(
            Code.INVALID_ARGUMENT,
            "BAD_CURSOR",
            'the cursor is none of this ledger; send that of an earlier response, "now", or none for the beginning',
        )
    return int(match[1])
