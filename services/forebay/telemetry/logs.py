"""Structured logs: one JSON object a line, with the trace's id, and with secrets redacted. Prompt text is never logged."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

# A virtual key anywhere in a value, and fields whose whole value is secret by their name.
_KEY = re.compile(r"fb_([a-z2-7]{12})_[A-Za-z0-9_-]{20,}")
_SECRET_FIELDS = frozenset({"key", "api_key", "authorization", "pepper", "secret", "password", "token"})


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns the logger of one part of the mesh; call its methods with an event and keyword fields."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(part=name)
    return logger


def configure_logs(service: str, instance: str, level: str = "info") -> None:
    """Sends structured lines to standard error; `level` is debug, info, warning or error."""
    # It complains of callers' malformed trace headers in plain lines, one for each.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
    return event


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hides keys and secrets; a key's public id stays, so that a line can be matched to a key."""
    for field, value in event.items():
        if field in _SECRET_FIELDS:
            event[field] = "[redacted]"
        elif isinstance(value, str):
            event[field] = _KEY.sub(r"fb_\1_[redacted]", value)
    return event
