"""A document checked against a pydantic model; what is wrong is said in our own words, which no release of pydantic changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError

from forebay.words import instead_of
from forebay.yaml_files.document import Document, Place
from forebay.yaml_files.scalars import moment

F = TypeVar("F", bound=BaseModel)

# A time in a file, quoted or not; nothing else becomes one, a number least of all.
Moment = Annotated[datetime, BeforeValidator(moment)]

_WORDS = {
    "missing": "is missing",
    "string_type": "must be text; quote it",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "dict_type": "must hold fields, each as `name: value`",
    "model_type": "must hold fields, each as `name: value`",
    "list_type": "must be a list such as [a, b]",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than_equal": "must be at most {le:,}",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length:,} characters long",
    "too_short": "must hold at least {min_length:,}",
    "too_long": "must hold at most {max_length:,}",
    "enum": "must be one of {expected}",
}
# What the patterns of our shapes ask for.
PATTERNS: dict[str, str] = {}


def check(document: Document, shape: type[F]) -> F | None:
    """Returns the document in its shape, or None with what is wrong reported to it."""
    if document.data is None and document.problems:
        return None
    return part_of(document, document.data, shape, ())


def part_of(document: Document, values: Any, shape: type[F], place: Place) -> F | None:
    """Returns a part of a document in its shape, or None with what is wrong reported to the document."""
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            document.report((*place, *problem["loc"]), _in_words(problem, shape))
        return None


def _in_words(problem: Mapping[str, Any], shape: type[BaseModel]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"is not known; {instead_of(str(problem['loc'][-1]), _names(shape, problem['loc'][:-1]))}"
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], "has a form that is not allowed here")
    return _WORDS[kind].format(**context) if kind in _WORDS else "has a value that is not allowed here"


def _names(annotation: Any, path: Place) -> list[str]:
    """Returns the names of the fields that may stand at a place in a shape."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return [field.alias or name for name, field in annotation.model_fields.items()]
        field = annotation.model_fields.get(str(path[0]))
        return _names(field.annotation, path[1:]) if field else []
    rest = path[1:] if path and getattr(annotation, "__origin__", None) in (dict, list) else path
    return [name for part in get_args(annotation) for name in _names(part, rest)]
