"""How names, amounts and spans are written in messages for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NANO = 1_000_000_000

# What each limit counts, after a number.
_COUNTED = {
    "requests_per_second": "requests a second",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "input_tokens_per_minute": "prompt tokens a minute",
    "output_tokens_per_minute": "completion tokens a minute",
    "concurrent_requests": "requests at a time",
    "tokens_per_day": "tokens a day",
    "daily_budget_nano_usd": "a day",
    "monthly_budget_nano_usd": "a month",
    "global_requests_per_second": "requests a second",
    "requests_per_router": "requests at a time on one router",
    "prompts_per_router": "long prompts at a time on one router",
    "usage_streams_per_router": "usage streams at a time on one router",
}


def usd(nano: int) -> str:
    """Returns nano-USD as dollars, with all digits that are not zero and at least two of them: $0.00, $1.50, $0.0000135."""
    whole, rest = divmod(abs(nano), _NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"


def amount(limit: str, value: int) -> str:
    """Returns an amount of what a limit counts, without its span: $0.0003 or 5,000."""
    return usd(value) if limit.endswith("_nano_usd") else f"{value:,}"


def limit_value(limit: str, value: int) -> str:
    """Returns the value of a limit with its unit, such as "$10.00 a day" or "5,000 tokens a minute"."""
    counted = _COUNTED.get(limit, limit.replace("_", " "))
    return f"{amount(limit, value)} {counted}"


def subject(name: str) -> str:
    """Returns whose limit it is: of tenant:acme/model:small "tenant acme on model small", of mesh all tenants."""
    if name == "mesh":
        return "all tenants together"
    return name.replace("/model:", " on model ", 1).replace(":", " ", 1)


def size(count: int) -> str:
    """Returns a number of bytes in the largest binary unit of which it is a whole number: 1 MiB, 256 bytes."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit:,} {name}"
    return f"{count:,} bytes"


def span(seconds: float) -> str:
    """Returns a span as people write it, rounded up to a unit that suits it: 0.3 s, 45 s, 20 min, 43 h, 12 d."""
    for unit, size, least in (("d", 86_400, 3 * 86_400), ("h", 3_600, 2 * 3_600), ("min", 60, 120)):
        if seconds >= least:
            return f"{-(-seconds // size):.0f} {unit}"
    return f"{-(-seconds // 1):.0f} s" if seconds >= 10 else f"{-(-seconds * 10 // 1) / 10:g} s"


def instead_of(name: str, known: Iterable[str]) -> str:
    """Returns what may have been meant by a name that is not known: "did you mean weight?", or a short list of what there is."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name[:100], names, n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if not names:
        return "there is none"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"there are {', '.join(names[:8])}{more}" if len(names) > 1 else f"there is {names[0]}"
