"""What a caller gives, checked before it leaves: a wrong name or value is an error here and not a traceback in protobuf.

The router checks again and knows more, such as the model's context. Here is only what no model changes.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from forebay.client.model import Message, Options, Prompt

_MAX_UINT32 = 2**32 - 1
_MAX_UINT64 = 2**64 - 1
# A year; gRPC cannot express any number of seconds.
_MAX_SECONDS = 31_536_000.0


def checked_options(options: Mapping[str, Any]) -> Options:
    """Returns the options that were given; one that is None is not given.

    Raises:
        TypeError: an option is not known, or has a value of the wrong type.
        ValueError: a value is out of its range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            raise TypeError(f"{name!r} is no option of a request; {suggestion(name, _CHECKS)}")
        if value is not None:
            checked[name] = check(name, value)
    return cast("Options", checked)


def checked_prompt(prompt: Prompt) -> list[Message]:
    """Returns a prompt as a conversation; a plain string is its only, the user's, turn.

    Raises:
        TypeError: it is neither a string nor a sequence of `Message`.
        ValueError: a text cannot be sent.
    """
    turns: Sequence[Any] = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    if not isinstance(turns, Sequence) or isinstance(turns, bytes):
        raise TypeError(f"prompt must be a string or a list of Message(role, content), not {_kind(turns)}")
    for turn in turns:
        if not isinstance(turn, Message):
            raise TypeError(
                f"prompt must be a string or a list of Message(role, content), not a list with {_kind(turn)}"
            )
        text("role of a message", turn.role)
        text("content of a message", turn.content)
    return list(turns)


def text(name: str, value: Any) -> str:
    """Returns a string that can be sent.

    Raises:
        TypeError: it is no string.
        ValueError: it has half of a surrogate pair, which UTF-8 does not know.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} cannot be sent as UTF-8: the character at {error.start} is half of a pair") from None
    return value


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Returns strings; a single one stands for itself.

    Raises:
        TypeError: it is neither a string nor an iterable of strings.
        ValueError: one cannot be sent.
    """
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise TypeError(f"{name} must be a list of strings, not {_kind(value)}")
    return tuple(text(f"each of {name}", part) for part in value)


def real(name: str, value: Any, least: float, most: float, *, above: bool = False) -> float:
    """Returns a number within [least, most], or (least, most] when `above`.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of its range.
    """
    number = _number(name, value)
    if not (least < number if above else least <= number) or number > most:
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {least} and at most {most:,}, not {value}")
    return number


def seconds(name: str, value: Any) -> float:
    """Returns a span in seconds, above 0 and at most a year.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of its range.
    """
    span = _number(name, value)
    if not 0 < span <= _MAX_SECONDS:
        raise ValueError(f"{name} must be above 0 and at most {_MAX_SECONDS:,.0f} seconds, not {value!r}")
    return span


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns what a misspelled name may have meant, or all names that there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {_short(value)}")
    return number


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {_kind(value)}") from None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {_kind(value)}")
    return value


def _labels(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of strings, not {_kind(value)}")
    return {text(f"each name of {name}", key): text(f"each value of {name}", part) for key, part in value.items()}


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        number = _integer(name, value)
        if not least <= number <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most:,}, not {_short(number)}")
        return number

    return check


def _real(least: float, most: float, *, above: bool = False) -> Callable[[str, Any], float]:
    return partial(real, least=least, most=most, above=above)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise TypeError(f"{name} must be a list of whole numbers, not {_kind(value)}")
    check = _whole(0, _MAX_UINT32)
    return tuple(check(f"each of {name}", part) for part in value)


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _short(value: object) -> str:
    """Returns a value as it is written; an enormous number by its length."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {math.floor(math.log10(abs(value))) + 1:,} digits"
    return repr(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": text,
    "max_tokens": _whole(1, _MAX_UINT32),
    "min_tokens": _whole(0, _MAX_UINT32),
    "temperature": _real(0, 2),
    "top_p": _real(0, 1, above=True),
    "top_k": _whole(0, _MAX_UINT32),
    "min_p": _real(0, 1),
    "seed": _whole(0, _MAX_UINT64),
    "stop": texts,
    "stop_token_ids": _ids,
    "ignore_eos": _flag,
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "repetition_penalty": _real(0, 2, above=True),
    "adapter": text,
    "client_request_id": text,
    "labels": _labels,
    "least_max_tokens": _whole(0, _MAX_UINT32),
    "queue_timeout": seconds,
}
