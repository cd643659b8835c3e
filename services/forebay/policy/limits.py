"""What each limit of the contract counts, and for how long.

Quota enforces them by it, and so does a router that cannot reach quota, each with arithmetic of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Kind(enum.Enum):
    """For how long what was taken counts."""

    RATE = "rate"  # until it has drained, at the limit in a second
    WINDOW = "window"  # for a minute from when it was taken
    PERIOD = "period"  # until the day or the month is over
    HOLD = "hold"  # until the reservation ends


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request takes: at most, when it is reserved; truly, when it is settled.

    Attributes:
        requests: 1, or 0 for a request that never started.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated.
        cached_tokens: those of the prompt that came from the prefix cache.
        gpu_time_ns: GPU time.
        cost_nano_usd: the price of it all.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    gpu_time_ns: int = 0
    cost_nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the contract: what it counts, for how long, and whether a settlement corrects it."""

    name: str
    kind: Kind
    amount: Callable[[Usage], int]
    monthly: bool = False


LIMITS = (
    Limit("requests_per_second", Kind.RATE, lambda usage: usage.requests),
    Limit("requests_per_minute", Kind.WINDOW, lambda usage: usage.requests),
    Limit("tokens_per_minute", Kind.WINDOW, lambda usage: usage.prompt_tokens + usage.completion_tokens),
    Limit("input_tokens_per_minute", Kind.WINDOW, lambda usage: usage.prompt_tokens),
    Limit("output_tokens_per_minute", Kind.WINDOW, lambda usage: usage.completion_tokens),
    Limit("concurrent_requests", Kind.HOLD, lambda usage: usage.requests),
    Limit("tokens_per_day", Kind.PERIOD, lambda usage: usage.prompt_tokens + usage.completion_tokens),
    Limit("daily_budget_nano_usd", Kind.PERIOD, lambda usage: usage.cost_nano_usd),
    Limit("monthly_budget_nano_usd", Kind.PERIOD, lambda usage: usage.cost_nano_usd, monthly=True),
)
