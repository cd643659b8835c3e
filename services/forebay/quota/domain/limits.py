"""Which limits are enforced, and what a request takes of each.

A limit that a request meets is a *row*. Every rule about limits is written once, over rows, here and in the scripts alike: one
more limit, or the same limits for a key or for a tenant on one model, is one more row and no more code.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from forebay.errors import QuotaViolation
from forebay.policy.model import TenantPolicy


class Kind(enum.Enum):
    """For how long what was taken counts."""

    WINDOW = "window"  # for a minute from when it was taken
    HOLD = "hold"  # until the reservation ends


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request takes: at most, when it is reserved; truly, when it is settled.

    Attributes:
        requests: 1, or 0 for a request that never started.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """One limit as one request meets it.

    Attributes:
        subject: whose limit, such as "tenant:acme".
        limit: which, such as "tokens_per_minute".
        kind: for how long what is taken counts.
        value: the limit; None where there is none, and what is taken is only counted.
        amount: what the request takes.
    """

    subject: str
    limit: str
    kind: Kind
    value: int | None
    amount: int

    @property
    def name(self) -> str:
        """The counter's name, unique within the tenant; the limit is what follows the last slash."""
        return f"{self.subject}/{self.limit}"

    def has_room(self, used: int) -> bool:
        """Whether the amount fits beside what is used."""
        return self.value is None or used + self.amount <= self.value

    def violation(self, used: int) -> QuotaViolation:
        """Returns the refusal of a row without room."""
        assert self.value is not None
        return QuotaViolation(self.subject, self.limit, self.value, used, self.amount)


_ENFORCED: tuple[tuple[str, Kind, Callable[[Usage], int]], ...] = (
    ("requests_per_minute", Kind.WINDOW, lambda usage: usage.requests),
    ("tokens_per_minute", Kind.WINDOW, lambda usage: usage.prompt_tokens + usage.completion_tokens),
    ("concurrent_requests", Kind.HOLD, lambda usage: usage.requests),
)


def rows_of(tenant: TenantPolicy, usage: Usage) -> tuple[Row, ...]:
    """Returns every enforced limit as a request of the tenant meets it.

    A limit that the tenant does not have is counted all the same, so that it holds from the moment it is set.
    """
    return tuple(
        Row(f"tenant:{tenant.tenant_id}", limit, kind, getattr(tenant.limits, limit), amount(usage))
        for limit, kind, amount in _ENFORCED
    )


def amounts_of(usage: Usage) -> dict[str, int]:
    """Returns what a settled request used of each limit that goes on counting after it."""
    return {limit: amount(usage) for limit, kind, amount in _ENFORCED if kind is Kind.WINDOW}
