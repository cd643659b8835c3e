"""The spans of an attempt, and the context that its usage event carries on."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.api.common.v1 import common_pb2
from forebay.telemetry.tracing import from_pb_trace
from forebay.worker.domain.attempt import Attempt
from forebay.worker.domain.usage import Ending, Trace
from forebay.worker.spans import record_attempt

from .doubles import SAMPLING
from .test_attempt import attempt

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("forebay.telemetry.tracing.tracer", lambda: provider.get_tracer("test"))
    return exporter


def record(one: Attempt, traceparent: str = PARENT) -> Trace:
    parent = from_pb_trace(common_pb2.TraceContext(traceparent=traceparent))
    return record_attempt(one, Ending.STOP, SAMPLING, parent, "worker-1", now=1005.0, monotonic=105.0)


def test_an_attempts_phases_are_spans_below_its_own(exporter: InMemorySpanExporter) -> None:
    one = attempt()
    one.stepped(7, 101.0)
    one.generated(1, 4, 102.0)
    one.generated(2, 4, 104.0)
    trace = record(one)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    times = {name: (span.start_time / 1e9, span.end_time / 1e9) for name, span in spans.items()}
    assert times == {
        "worker.execute": (1000.0, 1005.0),
        "engine.queue": (1000.0, 1001.0),
        "engine.prefill": (1001.0, 1002.0),
        "engine.decode": (1002.0, 1004.0),
    }
    execute = spans["worker.execute"]
    assert execute.parent is not None
    assert format(execute.parent.span_id, "016x") == PARENT[36:52]
    assert all(spans[name].parent == execute.context for name in spans if name != "worker.execute")
    assert execute.attributes is not None
    assert execute.attributes["gen_ai.request.model"] == "tiny"
    assert execute.attributes["gen_ai.usage.input_tokens"] == 10
    assert execute.attributes["gen_ai.usage.output_tokens"] == 2
    assert trace.trace_id == PARENT[3:35]
    assert trace.traceparent[36:52] == format(execute.context.span_id, "016x")


def test_phases_that_were_not_reached_have_no_span(exporter: InMemorySpanExporter) -> None:
    record(attempt())
    assert {span.name for span in exporter.get_finished_spans()} == {"worker.execute", "engine.queue"}


@pytest.mark.parametrize("traceparent", ["", "00-zz", "00-00000000000000000000000000000000-0000000000000000-01"])
def test_an_untraced_attempt_has_no_spans_and_no_context(exporter: InMemorySpanExporter, traceparent: str) -> None:
    assert record(attempt(), traceparent) == Trace()
    assert not exporter.get_finished_spans()
