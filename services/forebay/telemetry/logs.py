"""Structured logs: one JSON object a line, with the trace's id, and with secrets redacted. Prompt text is never logged.

To log never fails. A line that cannot be made or written is lost and counted (`forebay_log_lines_lost_total`), and the first line
that can be written afterwards is preceded by one that says how many were lost. What others print to standard error, such as
tracebacks, warnings and the standard library's own logs, goes the same way.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog
from opentelemetry import trace

from forebay.telemetry.metrics import LOG_LINES_LOST
from forebay.telemetry.sink import LineSink, SinkStream

# A virtual key anywhere in a value, and fields whose whole value is secret by their name.
_KEY = re.compile(r"fb_([a-z2-7]{12})_[A-Za-z0-9_-]{20,}")
_SECRET_FIELDS = frozenset({"key", "api_key", "authorization", "pepper", "secret", "password", "token"})


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns the logger of one part of the mesh; call its methods with an event and keyword fields."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(part=name)
    return logger


def configure_logs(service: str, instance: str, level: str = "info", descriptor: int | None = 2) -> LineSink:
    """Sends structured lines to standard error, and puts a stream that cannot fail in the place of `sys.stderr`.

    Args:
        service: the service's name, on every line.
        instance: the replica's name, on every line.
        level: debug, info, warning or error.
        descriptor: where lines go.

    Returns:
        where lines go, for what must be written past the logs.
    """
    if sys.stderr is None:  # closed when Python started: the number may be any file's by now
        descriptor = None

    def notice(lost: int) -> str:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = {"service": service, "instance": instance, "part": "logs", "event": "log lines lost", "lines": lost}
        return json.dumps(line | {"level": "error", "timestamp": now})

    sink = LineSink(descriptor, notice, LOG_LINES_LOST.inc)
    sys.stderr = SinkStream(sink)
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    lowest = logging.getLevelNamesMapping()[level.upper()]

    class Logger(structlog.make_filtering_bound_logger(lowest)):  # type: ignore[misc]  # made at run time
        """A bound logger whose calls never raise, whatever they are given."""

        def _proxy_to_logger(self, method_name: str, event: str | None = None, *args: Any, **fields: Any) -> Any:
            try:
                return super()._proxy_to_logger(method_name, event, *args, **fields)
            except Exception:
                sink.lose()

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
        wrapper_class=Logger,
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward(sink)]
    root.setLevel(logging.WARNING)
    # It complains of callers' malformed trace headers, one line for each.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    return sink


class _SinkLogger:
    """What structlog hands a rendered line to."""

    def __init__(self, sink: LineSink) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = self.exception = sink.line


class _Forward(logging.Handler):
    """Logs what other packages log by the standard library."""

    def __init__(self, sink: LineSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record; never raises."""
        try:
            level = "error" if record.levelno >= logging.ERROR else "warning"
            getattr(get_logger(record.name), level)(record.getMessage(), exc_info=record.exc_info or None)
        except Exception:
            self._sink.lose()


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
