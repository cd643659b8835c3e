"""What is wrong with a field of a file or a configuration, in our words.

The library that checks fields words its errors for programmers, and anew in each release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_A_WHOLE_NUMBER, _A_NUMBER, _A_TEXT = "must be a whole number", "must be a number", "must be a text"
_A_LIST, _FIELDS, _TRUE_OR_FALSE = "must be a list", "must hold `field: value` lines", "must be true or false"
_A_TIME = "must be a time such as 2026-01-31T12:00:00Z"
_A_DATE = "must be a date such as 2026-01-31"
_A_FILE = "must be the path of a file that is there"

# By the kind of the error; braces stand for a value of its context.
_SENTENCES: Mapping[str, str] = {
    "missing": "must be given",
    "extra_forbidden": "is not a known field",
    "int_type": _A_WHOLE_NUMBER, "int_parsing": _A_WHOLE_NUMBER, "int_from_float": _A_WHOLE_NUMBER,
    "int_parsing_size": "must be a smaller number",
    "float_type": _A_NUMBER, "float_parsing": _A_NUMBER, "finite_number": _A_NUMBER,
    "decimal_type": _A_NUMBER, "decimal_parsing": _A_NUMBER,
    "decimal_max_digits": "must have at most {max_digits} digits",
    "decimal_max_places": "must have at most {decimal_places} digits after the point",
    "bool_type": _TRUE_OR_FALSE, "bool_parsing": _TRUE_OR_FALSE,
    "string_type": _A_TEXT, "string_sub_type": _A_TEXT, "string_unicode": _A_TEXT,
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "bytes_type": _A_TEXT,
    "greater_than": "must be more than {gt}", "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}", "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}", "enum": "must be {expected}",
    "list_type": _A_LIST, "tuple_type": _A_LIST, "set_type": _A_LIST, "frozen_set_type": _A_LIST, "iterable_type": _A_LIST,
    "too_short": "must have at least {min_length} entries", "too_long": "must have at most {max_length} entries",
    "dict_type": _FIELDS, "mapping_type": _FIELDS, "model_type": _FIELDS, "model_attributes_type": _FIELDS,
    "dataclass_type": _FIELDS,
    "datetime_type": _A_TIME, "datetime_parsing": _A_TIME, "datetime_from_date_parsing": _A_TIME,
    "datetime_object_invalid": _A_TIME,
    "timezone_aware": "must say its time zone, as 2026-01-31T12:00:00Z does",
    "date_type": _A_DATE, "date_parsing": _A_DATE, "date_from_datetime_parsing": _A_DATE,
    "path_type": "must be a path", "path_not_file": _A_FILE, "path_not_directory": "must be the path of a folder that is there",
}  # fmt: skip
_OTHERWISE = "has a value that is not allowed"


def sentence(kind: str, context: Mapping[str, Any]) -> str:
    """Returns what is wrong, for a kind of error of pydantic and its context."""
    if kind in ("value_error", "assertion_error"):  # raised by a validator of ours
        return str(context["error"])
    return _SENTENCES.get(kind, _OTHERWISE).format_map(context)
