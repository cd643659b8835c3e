"""A reservation: what it is, the states it passes through, and the answers it is given.

```
            renewed, if there is still room
          ┌──────────────────────────────────┐
          ▼                                  │
  ───▶  held  ───── lease lapses ─────▶  expired ──── an hour later ───┐
          │                                  │                         ▼
          └────────── settled ───────────────┴── settled ──────▶    settled ──── ten minutes later ──▶ forgotten
```

An expired reservation has given back what it held (its place among the concurrent requests) and stays charged in full for what
counts by the minute: provisionally, since a late settlement still applies the difference. Only `settled` is final; it is
remembered for a while, so that a settlement or a reserve that is repeated finds it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from forebay.errors import QuotaViolation


class State(enum.Enum):
    """Where a reservation is."""

    HELD = "held"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Terms:
    """How long what lasts, in ms."""

    lease_ms: int = 30_000
    provisional_ms: int = 3_600_000
    remembered_ms: int = 600_000


@dataclass(frozen=True, slots=True)
class Router:
    """One life of one router: what an earlier one reserved is not its own."""

    id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be reserved, and for whom."""

    request_id: str
    router: Router
    prompt_tokens: int
    max_completion_tokens: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold as stored; times in ms since the epoch, `due_ms` being when its state ends by itself."""

    order: Order
    state: State
    reserved_at_ms: int
    due_ms: int


class Outcome(enum.Enum):
    """How a reserve ended."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    TAKEN = "taken"  # the request id is another router's, or of another life of this one


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a reserve.

    Attributes:
        outcome: how it ended.
        violations: every limit without room, if it was refused.
        retry_after_ms: when there will be room, or may be.
    """

    outcome: Outcome
    violations: tuple[QuotaViolation, ...] = ()
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep moved on, in numbers of reservations."""

    expired: int = 0
    settled: int = 0
    forgotten: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.expired + self.settled + self.forgotten


@dataclass(frozen=True, slots=True)
class LimitState:
    """How much of one limit is used; `resets_in_ms` is when some of it is free again, 0 where that is not known."""

    subject: str
    limit: str
    value: int
    used: int
    resets_in_ms: int
