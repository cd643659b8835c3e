"""The one error type of the mesh.

A `MeshError` is raised by domains and use cases alike and crosses the wire without loss: as `google.rpc.Status` with details on
unary calls and on the public API, as `common.v1.Error` inside sessions (see `forebay.rpc.status`). Metrics count its `reason`,
logs hold its `message`, and neither ever contains prompt text or another tenant's data.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forebay.words import amount, limit_value, subject


class Code(enum.Enum):
    """What kind of error it is; the numbers are those of google.rpc.Code, so that no table is needed at the edge."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One limit without room.

    Attributes:
        subject: whose limit, such as "tenant:acme".
        limit: which, such as "tokens_per_minute".
        value: the limit, in its own unit.
        used: used or held now, in the same unit.
        asked: what the request asked for, in the same unit.
    """

    subject: str
    limit: str
    value: int
    used: int
    asked: int

    def sentence(self) -> str:
        """Says the violation in words, for QuotaFailure's description."""
        used, asked = amount(self.limit, self.used), amount(self.limit, self.asked)
        return (
            f"{subject(self.subject)} may use {limit_value(self.limit, self.value)}; {used} {_is(self.used, used)} used or held, "
            f"and {asked} more {_is(self.asked, asked)} asked for"
        )


def _is(number: int, text: str) -> str:
    return "is" if number == 1 or text.startswith("$") else "are"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong, and what would be right."""

    field: str
    description: str


class MeshError(Exception):
    """An error with a code, a stable reason and a sentence that says what to do.

    Attributes:
        code: what kind of error it is.
        reason: UPPER_SNAKE_CASE, stable, for programs.
        message: for people.
        retry_after: the shortest wait in seconds after which a repeat can succeed; None when no wait helps.
        quota_violations: the limits that refused.
        field_violations: the fields at fault.
        metadata: further facts for programs; at most 16.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        quota_violations: Iterable[QuotaViolation] = (),
        field_violations: Iterable[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.quota_violations = tuple(quota_violations)
        self.field_violations = tuple(field_violations)
        self.metadata = dict(metadata or {})

    def __repr__(self) -> str:
        return f"MeshError({self.code.name}, {self.reason}: {self.message})"

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
