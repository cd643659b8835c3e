"""A reservation: what it is, the states it passes through, and the answers it is given.

```
            renewed, if there is still room
          ┌──────────────────────────────────┐
          ▼                                  │
  ───▶  held  ───── lease lapses ─────▶  expired ─ usage observed, ────┐
          │                                  │    or an hour later      ▼
          └────────── settled ───────────────┴── settled ──────▶    settled ──── ten minutes later ──▶ forgotten
```

An expired reservation has given back what it held (its place among the concurrent requests) and stays charged in full for what
counts by the minute, the day and the month: provisionally, since a late settlement still applies the difference. Only `settled`
is final; it is remembered for a while, so that a settlement or a reserve that is repeated finds it.

What the ledger says of a request is kept with its reservation. While the lease lasts it settles nothing: a router that lives
settles by itself. Once the lease has lapsed it settles the reservation: at once if the request has ended with it; after another
lease if only an attempt has, which another one may have followed. Without any usage for an hour no attempt has started, and
nothing is charged.

A worker that hung may report its usage after the settlement. The ledger is corrected then, and the counters of the day and the
month follow it for as long as the settlement is remembered. They follow only while the ledger has at least the tokens that the
router settled with: with fewer, some rows are still to come. What is still missing when the settlement is forgotten never comes,
since the worker and the router died before they could tell, and then the ledger counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forebay.errors import QuotaViolation
from forebay.quota.domain.limits import Row

# The limit whose amount is a request's tokens.
TOKENS = "tokens_per_day"


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

    def patience_ms(self, observed: Observation | None) -> int:
        """Returns how long an expired reservation waits for news after it was observed so."""
        if observed is None:
            return self.provisional_ms
        return 0 if observed.final else self.lease_ms


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
class Hold:
    """What a router knows of a reservation that it was given, with which a lost one is taken in again.

    Attributes:
        key_id, model: by which key and on which model.
        reserved_at_s: when it was asked for, in seconds since the epoch by the router's clock.
    """

    order: Order
    key_id: str
    model: str
    reserved_at_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """A reservation as a router renews it."""

    tenant_id: str
    request_id: str
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold as stored; times in ms since the epoch, `due_ms` being when its state ends by itself."""

    order: Order
    state: State
    reserved_at_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the ledger says of a request as of one of its rows.

    It says the whole of it, so the latest is all that is kept, and neither order nor repetition of observations matters.

    Attributes:
        request_id: the request.
        position: of the row in the ledger.
        amounts: what all the request's rows come to, by limit.
        final: whether the request ended with its last attempt.
    """

    request_id: str
    position: int
    amounts: Mapping[str, int]
    final: bool

    def is_news_after(self, other: Observation | None) -> bool:
        """Whether this is to be kept instead of the other."""
        return other is None or self.position > other.position

    @property
    def tokens(self) -> int:
        """What the ledger has of the request's tokens."""
        return self.amounts.get(TOKENS, 0)


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
        warnings: names of the rows that crossed their warning threshold by this request.
        start_after_ms: for how long an admitted request is to be held back.
    """

    outcome: Outcome
    violations: tuple[QuotaViolation, ...] = ()
    retry_after_ms: int = 0
    warnings: tuple[str, ...] = ()
    start_after_ms: int = 0

    @classmethod
    def admitted(cls, noticed: Iterable[tuple[Row, int]]) -> Decision:
        """Returns the admission of a request, given the rows that it brought to a soft threshold and what was used of each."""
        rows = list(noticed)
        return cls(
            Outcome.ADMITTED,
            warnings=tuple(row.name for row, used in rows if row.warns(used)),
            start_after_ms=max((row.start_after_ms(used) for row, used in rows), default=0),
        )


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
