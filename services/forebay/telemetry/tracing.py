"""Tracing: one request is one trace through all five services.

A session outlives its requests, so the context of a request travels inside each message (`common.v1.TraceContext`) and not in
the stream's metadata. Spans go to an OTLP endpoint where one is configured, and otherwise, one JSON object a line, to a file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanContext, SpanKind, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from forebay.api.common.v1 import common_pb2
from forebay.telemetry.logs import get_logger
from forebay.telemetry.metrics import SPANS_LOST
from forebay.telemetry.w3c import MAX_TRACESTATE, usable_headers, usable_tracestate

_NS = 1_000_000_000
_W3C = TraceContextTextMapPropagator()

log = get_logger("tracing")


class FileSpanExporter(SpanExporter):
    """Appends spans to a file, one JSON object a line, and opens the next file when one has grown to `max_bytes`.

    Only the present file and the one before (suffix `.1`) are kept, so that an unattended mesh cannot fill a disk. A file that
    cannot be made or written loses spans, which are counted (`forebay_spans_lost_total`), and nothing else.
    """

    def __init__(self, path: Path, max_bytes: int = 64 << 20) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._lost = 0
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes the spans, or counts them as lost."""
        with self._lock:
            try:
                self._append("".join(json.dumps(span_to_dict(span)) + "\n" for span in spans).encode())
            except OSError as error:
                self._close()
                if not self._lost:
                    log.error("spans are lost", path=str(self.path), error=error.strerror)
                self._lost += len(spans)
                SPANS_LOST.inc(len(spans))
                return SpanExportResult.FAILURE
            if self._lost:
                log.warning("spans were lost", path=str(self.path), spans=self._lost)
                self._lost = 0
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        with self._lock:
            self._close()

    def _append(self, lines: bytes) -> None:
        """Writes whole lines or leaves the file as it was, as far as the disk lets it."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        length = os.fstat(self._descriptor).st_size
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, length)
            raise
        if length + len(lines) > self.max_bytes:
            try:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            except OSError:
                os.ftruncate(self._descriptor, 0)  # there is no other way to keep to the bound
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def span_to_dict(span: ReadableSpan) -> dict[str, object]:
    """Returns a span as plain values: ids in hex, times in ns since the epoch."""
    context = span.context
    assert context is not None
    return {
        "trace_id": format(context.trace_id, "032x"),
        "span_id": format(context.span_id, "016x"),
        "parent_span_id": format(span.parent.span_id, "016x") if span.parent else "",
        "name": span.name,
        "kind": span.kind.name.lower(),
        "start_unix_nano": span.start_time,
        "end_unix_nano": span.end_time,
        "status": span.status.status_code.name.lower(),
        "attributes": dict(span.attributes or {}),
        "resource": dict(span.resource.attributes),
    }


def configure_tracing(
    service: str,
    instance: str,
    *,
    process_id: int,
    otlp_endpoint: str | None,
    file: Path | None,
    sample_ratio: float = 1.0,
) -> TracerProvider | None:
    """Sets up this process's tracing; hand what it returns to `flush_tracing` at the end.

    Args:
        service: the service's name, without the project's.
        instance: the replica's name.
        process_id: goes into every span's resource, so that a trace shows which process did what.
        otlp_endpoint: an OTLP/gRPC address such as http://127.0.0.1:4317; goes before `file`.
        file: where spans go without an endpoint; None with no endpoint turns tracing off and returns None.
        sample_ratio: the share of traces kept, 0 to 1, for requests that bring no decision of their own.
    """
    exporter: SpanExporter
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=otlp_endpoint.startswith("http://"))
    elif file:
        exporter = FileSpanExporter(file)
    else:
        return None
    resource = Resource.create(
        {
            "service.name": f"forebay-{service}",
            "service.namespace": "forebay",
            "service.instance.id": instance,
            "process.pid": process_id,
        }
    )
    sampler = ParentBased(TraceIdRatioBased(sample_ratio))
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500, max_queue_size=16_384))
    trace.set_tracer_provider(provider)
    return provider


def flush_tracing(provider: TracerProvider, within_s: float) -> bool:
    """Sends the spans that are left, for so long at most; returns whether that was enough. Blocks; nothing is traced afterwards.

    The SDK waits for the exporter, and the exporter repeats what a collector does not answer. So both are left to a thread that
    ends with the process.
    """
    flushing = threading.Thread(target=provider.shutdown, name="flush traces", daemon=True)
    flushing.start()
    flushing.join(within_s)
    return not flushing.is_alive()


def tracer() -> Tracer:
    """Returns the mesh's tracer; until tracing is configured its spans go nowhere and cost next to nothing."""
    return trace.get_tracer("forebay")


def in_span(
    name: str,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AbstractContextManager[Span]:
    """Returns a block's span, under `parent` or the current span, which is the current one in the block.

    What the block raises is not recorded: a refusal is no failure, and a message may quote a prompt.
    """
    return tracer().start_as_current_span(
        name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
    )


def to_pb_trace(span: Span | None = None) -> common_pb2.TraceContext:
    """Returns the context of `span`, or of the current span, for a message; empty when there is none."""
    context = (span or trace.get_current_span()).get_span_context()
    if not context.is_valid:
        return common_pb2.TraceContext()
    tracestate = context.trace_state.to_header()
    if len(tracestate) > MAX_TRACESTATE:
        tracestate = usable_tracestate(tracestate)
    return common_pb2.TraceContext(traceparent=_traceparent(context), tracestate=tracestate)


def from_pb_trace(message: common_pb2.TraceContext) -> Context:
    """Returns the context that a message carries, as the parent for spans; an empty or malformed one gives an empty context."""
    if not message.traceparent:
        return Context()
    return from_headers({"traceparent": message.traceparent, "tracestate": message.tracestate})


def from_headers(headers: Mapping[str, str]) -> Context:
    """Returns the context in a call's metadata; an empty one for headers that are missing or malformed."""
    usable = usable_headers(headers)
    return _W3C.extract(usable, Context()) if usable else Context()


def to_headers() -> list[tuple[str, str]]:
    """Returns the current context as metadata for a call."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return list(carrier.items())


def trace_id(span: Span | None = None) -> str:
    """Returns the trace's id in 32 hex digits; empty when the request is not traced."""
    context = (span or trace.get_current_span()).get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else ""


def record_span(
    name: str,
    parent: Context,
    start_s: float,
    end_s: float,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Span:
    """Records a span whose times are known only afterwards, in seconds since the epoch; returns it, ended, to hang others on.

    Without a valid parent nothing is recorded: these spans are parts of a request, and never the root of a trace.
    """
    if not trace.get_current_span(parent).get_span_context().is_valid:
        return trace.INVALID_SPAN
    span = tracer().start_span(name, context=parent, start_time=int(start_s * _NS), attributes=attributes)
    span.end(end_time=int(max(start_s, end_s) * _NS))
    return span


def _traceparent(context: SpanContext) -> str:
    sampled = context.trace_flags & TraceFlags.SAMPLED
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{sampled:02x}"
