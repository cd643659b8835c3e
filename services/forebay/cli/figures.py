"""How figures are written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from forebay.words import span, usd

if TYPE_CHECKING:
    from forebay.policy.model import Limits

__all__ = ["duration", "limits", "masked", "models", "moment", "usd", "usd_per_1000", "usd_within", "wait"]

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def usd_within(nano: int, width: int) -> str:
    """Returns nano-USD as dollars in at most `width` characters, rounded to as many decimals as fit, 2 at least."""
    exact = usd(nano)
    if len(exact) <= width:
        return exact
    whole, _, decimals = exact.partition(".")
    places = max(2, len(decimals) - (len(exact) - width))
    unit = 10 ** (9 - places)
    rounded = round(nano / unit) * unit if places < 9 else nano
    whole, _, decimals = usd(rounded).partition(".")
    return f"{whole}.{decimals.ljust(places, '0')}"


def duration(seconds: float | None) -> str:
    """Returns a span in the units that people use, two at most: 12 ms, 3.2 s, 5 min 20 s, 19 h 4 min, 3 d; a dash for none."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (size, unit), (next_size, next_unit) in pairwise(_UNITS):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count:,} {unit}" + (f" {rest // next_size} {next_unit}" if rest >= next_size else "")
    return f"{whole} s"


def wait(seconds: float) -> str:
    """Returns how long to wait, rounded up as in what the services say; a second at least, because nobody types faster."""
    return span(max(1.0, seconds)) if math.isfinite(seconds) else "–"


def moment(seconds: float, *, year: bool = True) -> str:
    """Returns a date and a time of day in UTC, as the ledger's days are, from seconds since the epoch."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S" if year else "%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "–"


def masked(key: str) -> str:
    """Returns a key that can be recognised and not used."""
    return f"{key[:16]}…"


def usd_per_1000(nano_per_million: int) -> str:
    """Returns a price per 1,000 tokens in dollars, exactly, from nano-USD per million tokens."""
    whole, rest = divmod(nano_per_million, 10**12)
    return f"${whole:,}.{f'{rest:012d}'.rstrip('0').ljust(2, '0')}"


def models(names: Sequence[str] | None) -> str:
    """Returns which models may be used; None and an empty list are different things."""
    if names is None:
        return "all"
    return ", ".join(names) or "none"


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
    for budget, period in ((values.daily_budget_nano_usd, "day"), (values.monthly_budget_nano_usd, "month")):
        if budget is not None:
            texts.append(f"{usd(budget)}/{period}")
    return ", ".join(texts) or "none"
