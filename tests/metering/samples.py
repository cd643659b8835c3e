"""Events and prices for tests."""

from __future__ import annotations

from typing import Any

from forebay.metering.domain.event import NANO, Outcome, Source, UsageEvent
from forebay.metering.domain.prices import Item, Price, PriceTable

NOON_NS = 1_700_049_600 * NANO  # 2023-11-15T12:00:00Z

# Prices that do not divide evenly, so that rounding shows.
TABLE = PriceTable(
    Price("default", item, price)
    for item, price in zip(Item, (333_333, 33_333, 777_777, 1_234_567_891, 999_999), strict=True)
)


def request_id(number: int) -> str:
    return f"{number:032x}"


def usage_event(request: int = 1, attempt: int = 1, source: Source = Source.WORKER, **changes: Any) -> UsageEvent:
    """Returns an event with plausible values, `changes` excepted."""
    values: dict[str, Any] = {
        "request_id": request_id(request),
        "attempt": attempt,
        "source": source,
        "tenant_id": "acme",
        "key_id": "k7f3q2m4x5za",
        "plan": "basic",
        "priced_by_plan": False,
        "service_class": "bronze",
        "model": "smollm2",
        "adapter": "",
        "pool": "default",
        "worker_id": "worker-1",
        "worker_incarnation": 1_700_000_000_000_000,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "completion_from": 0,
        "completion_to": 20,
        "recomputed_tokens": 0,
        "gpu_time_ns": 50_000_000,
        "recomputed_gpu_time_ns": 0,
        "queue_time_ns": 1_000_000,
        "time_to_first_token_ns": 9_000_000,
        "started_at_ns": NOON_NS - NANO,
        "finished_at_ns": NOON_NS,
        "outcome": Outcome.COMPLETED,
        "trace_id": "",
        "client_request_id": "mine",
        "labels": {"team": "red"},
    }
    return UsageEvent(**values | changes)
