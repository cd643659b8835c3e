"""How names, amounts and spans are written in messages for people, and how people write spans."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NANO = 1_000_000_000

# The fields of quota's contract that people know under another name and in another unit, which are those of the files.
FILE_NAMES = {
    "weight_milli": "weight",
    "daily_budget_nano_usd": "daily_budget_usd",
    "monthly_budget_nano_usd": "monthly_budget_usd",
    "nano_usd_per_million_tokens": "usd_per_1000_tokens",
}
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
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1}
_SPAN = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})?(?:d|h|min|m|s))+")
_PART = re.compile(r"([0-9.]+)(d|h|min|m|s)")


def usd(nano: int) -> str:
    """Returns nano-USD as dollars, with all digits that are not zero and at least two of them: $0.00, $1.50, $0.0000135."""
    whole, rest = divmod(abs(nano), _NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"


def file_name(path: str) -> str:
    """Returns the name that a field has in files and for people, of a path such as limits.daily_budget_nano_usd."""
    outer, dot, name = path.rpartition(".")
    return f"{outer}{dot}{FILE_NAMES.get(name, name)}"


def amount(limit: str, value: int) -> str:
    """Returns an amount of what a limit counts, without its span: $0.0003 or 5,000."""
    return usd(value) if limit.endswith("_nano_usd") else f"{value:,}"


def limit_value(limit: str, value: int) -> str:
    """Returns the value of a limit with its unit, such as "$10.00 a day" or "5,000 tokens a minute"."""
    counted = _COUNTED.get(limit, limit.replace("_", " "))
    return f"{amount(limit, value)} {counted}"


def subject(name: str) -> str:
    """Returns whose limit it is: tenant:acme/model:small becomes "tenant acme on model small"."""
    return name.replace("/model:", " on model ").replace(":", " ", 1)


def span(seconds: float) -> str:
    """Returns a span as people write it, rounded up to a unit that suits it: 0.3 s, 45 s, 20 min, 43 h, 12 d."""
    for unit, size, least in (("d", 86_400, 3 * 86_400), ("h", 3_600, 2 * 3_600), ("min", 60, 120)):
        if seconds >= least:
            return f"{-(-seconds // size):.0f} {unit}"
    return f"{-(-seconds // 1):.0f} s" if seconds >= 10 else f"{-(-seconds * 10 // 1) / 10:g} s"


def exact_span(seconds: int) -> str:
    """Returns whole seconds as people write a setting, without rounding: 90s, 1h30m, 2d."""
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_span(text: str) -> float:
    """Returns the seconds of a span such as 90s, 30m, 1h30m or 2d.

    Raises:
        ValueError: it is written otherwise.
    """
    packed = text.replace(" ", "")
    if not _SPAN.fullmatch(packed):
        raise ValueError(f"{text!r} is no span of time; write it as 90s, 30m, 1h or 2d")
    return sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(packed))


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
