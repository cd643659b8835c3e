"""How figures are written for people."""

from __future__ import annotations

from datetime import datetime

from forebay.policy.model import Limits


def usd(nano: int) -> str:
    """Returns nano-USD as dollars, with all digits that are not zero and at least two of them: $0.00, $1.50, $0.0000135."""
    whole, rest = divmod(abs(nano), 1_000_000_000)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"


def duration(seconds: float | None) -> str:
    """Returns a span in the unit that suits it; a dash for none."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def moment(seconds: float) -> str:
    """Returns a time of day, in this machine's zone, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def masked(key: str) -> str:
    """Returns a key that can be recognised and not used."""
    return f"{key[:16]}…"


def limits(values: Limits) -> str:
    """Returns what a tenant or plan may use, in short."""
    parts = [
        (values.requests_per_second, "req/s"),
        (values.requests_per_minute, "req/min"),
        (values.tokens_per_minute, "tok/min"),
        (values.input_tokens_per_minute, "tok/min in"),
        (values.output_tokens_per_minute, "tok/min out"),
        (values.concurrent_requests, "at once"),
        (values.tokens_per_day, "tok/day"),
    ]
    texts = [f"{value:,} {unit}" for value, unit in parts if value is not None]
    for budget, span in ((values.daily_budget_nano_usd, "day"), (values.monthly_budget_nano_usd, "month")):
        if budget is not None:
            texts.append(f"{usd(budget)}/{span}")
    return ", ".join(texts) or "none"
