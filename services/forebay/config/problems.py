"""What is wrong with a value, in words for people who have never heard of the library that found it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Place = tuple[str | int, ...]


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count} characters"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda at: "must be given",
    "greater_than": lambda at: f"must be above {_number(at['gt'])}",
    "greater_than_equal": lambda at: f"must be at least {_number(at['ge'])}",
    "less_than": lambda at: f"must be below {_number(at['lt'])}",
    "less_than_equal": lambda at: f"must be at most {_number(at['le'])}",
    "finite_number": lambda at: "must be a finite number",
    "bool_type": lambda at: "must be true or false",
    "bool_parsing": lambda at: "must be true or false",
    "int_type": lambda at: "must be a whole number",
    "int_parsing": lambda at: "must be a whole number",
    "int_parsing_size": lambda at: "is too large a number",
    "int_from_float": lambda at: "must be a whole number",
    "float_type": lambda at: "must be a number",
    "float_parsing": lambda at: "must be a number",
    "string_type": lambda at: "must be a text; put it in quotes if it is one",
    "string_unicode": lambda at: "must be a text in UTF-8",
    "string_too_short": lambda at: f"must have at least {_characters(at['min_length'])}",
    "string_too_long": lambda at: f"must have at most {_characters(at['max_length'])}",
    "too_short": lambda at: f"must have at least {_entries(at['min_length'])}",
    "too_long": lambda at: f"must have at most {_entries(at['max_length'])}",
    "list_type": lambda at: "must be a list",
    "tuple_type": lambda at: "must be a list",
    "dict_type": lambda at: "must hold `field: value` lines",
    "model_type": lambda at: "must hold `field: value` lines",
    "model_attributes_type": lambda at: "must hold `field: value` lines",
    "literal_error": lambda at: f"must be {at['expected']}".replace("'", ""),
    "enum": lambda at: f"must be {at['expected']}".replace("'", ""),
    "path_type": lambda at: "must be a path",
    "path_not_file": lambda at: "there is no such file",
    "path_not_directory": lambda at: "there is no such directory",
    "value_error": lambda at: str(at["error"]),
}


def words(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    """Returns what is wrong, without the value, which may be a secret."""
    kind, place = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return "there is no such field" + _did_you_mean(model, place)
    field = _field(model, place)
    if kind == "string_pattern_mismatch" and field is not None and isinstance(field.json_schema_extra, dict):
        return f"must be {field.json_schema_extra['form']}"
    if kind in _WORDS:
        return _WORDS[kind](problem.get("ctx", {}))
    return (
        f"cannot be used; it is: {field.description}" if field is not None and field.description else "cannot be used"
    )


def _did_you_mean(model: type[BaseModel], place: Place) -> str:
    around = _model(model, place[:-1])
    names = list(around.model_fields) if around is not None else []
    close = difflib.get_close_matches(str(place[-1]), names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(names))}" if 0 < len(names) <= 12 else ""


def _field(model: type[BaseModel], place: Place) -> FieldInfo | None:
    """Returns the field at a place, or the field that the value there is an entry of."""
    names = [part for part in place if isinstance(part, str)]
    if not names:
        return None
    around = _model(model, place[: place.index(names[-1])])
    return around.model_fields.get(names[-1]) if around is not None else None


def _model(model: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """Returns the model at a place."""
    for part in place:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = models_in(field.annotation) if field is not None else []
        if not inner:
            return None
        model = inner[0]
    return model


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the models of which a field's value is made, be it one, many or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]
