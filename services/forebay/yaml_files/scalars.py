"""The value of an unquoted YAML scalar, where every version of YAML agrees on it; anything else is refused.

YAML 1.1 and 1.2 read `010`, `1:30`, `no` and `1e3` differently, and people see a third thing in them. A limit of 8 instead of 10
or a tenant called False would be the result. So each such form is refused with what to write instead. What is left is read as the
core schema of YAML 1.2 reads it, with one addition: thousands may be grouped, as in 1_000_000.
"""

from __future__ import annotations

import re
from datetime import datetime

# Every integer of so many digits fits into 64 bits.
MAX_DIGITS = 18

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WORDS = re.compile(r"y|Y|n|N|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF")

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:_[0-9]{3})+")
_DECIMAL = re.compile(r"(?:[-+]?(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]{1,3})?")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[-+][0-9]{2}:[0-9]{2})"
)

# What some reader takes for a number or a date, and what to write instead.
_AMBIGUOUS = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"[-+]?0[0-9_]+", "begins with 0, which makes it octal for some readers; write it without the 0"),
        (r"[-+]?0[xXoObB][0-9a-fA-F_]+", "is not in decimal digits; write it in decimal digits"),
        (r"[-+]?[0-9][0-9_]*(?::[0-9_]+)+(?:\.[0-9_]*)?", "counts in sixties for some readers; write one number"),
        (r"[-+]?[0-9][0-9_]*", "groups its digits in an unusual way; write it without _"),
        (r"[-+]?\.(?:[iI][nN][fF]|[nN][aA][nN])", "is no number that can be used here; write digits"),
        (
            r"[-+]?(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?",
            "is a number for some readers and text for others; write plain digits such as 1000 or 0.5",
        ),
        (
            r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?",
            "is a date for some readers; write a time as 2030-12-31T00:00:00Z",
        ),
    )
)


def plain_value(text: str) -> object:
    """Returns what an unquoted scalar stands for: None, a truth value, a number, a time with its zone, or text.

    Raises:
        ValueError: readers of YAML do not agree on it; the message says what to write instead.
    """
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _WORDS.fullmatch(text):
        raise ValueError(f"{text} is a truth value for some readers; write true or false{_QUOTED}")
    if not (text[0].isdigit() or text[0] in "-+."):  # the others begin with one of these, and texts are many
        return text
    if _INTEGER.fullmatch(text) or _GROUPED.fullmatch(text):
        if len(text.lstrip("-+").replace("_", "")) > MAX_DIGITS:
            raise ValueError(f"{_short(text)} has more than {MAX_DIGITS} digits; give a smaller number{_QUOTED}")
        return int(text)
    if _DECIMAL.fullmatch(text) and len(text) <= 2 * MAX_DIGITS:
        return float(text)
    if _MOMENT.fullmatch(text):
        return moment(text)
    for form, advice in _AMBIGUOUS:
        if form.fullmatch(text):
            raise ValueError(f"{_short(text)} {advice}{_QUOTED}")
    return text


def moment(text: object) -> datetime:
    """Returns a time that is written as 2030-12-31T00:00:00Z or with an offset such as +01:00.

    Raises:
        ValueError: it is written otherwise, or is no time of any calendar.
    """
    if isinstance(text, datetime):
        return text
    if isinstance(text, str) and _MOMENT.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper())
        except ValueError:
            pass
    raise ValueError("must be a date and time with its zone, such as 2030-12-31T00:00:00Z")


_QUOTED = ", or quote it to mean the text"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
