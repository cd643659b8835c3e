"""Traces in files and messages, and logs without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from forebay.api.common.v1 import common_pb2
from forebay.policy.keys import hash_key, new_key, parse_key_id
from forebay.telemetry import tracing
from forebay.telemetry.logs import redact


@pytest.fixture
def exporter(tmp_path: Path) -> tracing.FileSpanExporter:
    return tracing.FileSpanExporter(tmp_path / "traces" / "router.jsonl", max_bytes=2_000)


@pytest.fixture
def provider(exporter: tracing.FileSpanExporter) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"process.pid": 7}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def spans(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_context_survives_a_message(provider: TracerProvider, exporter: tracing.FileSpanExporter) -> None:
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("parent", context=Context()) as parent:
        message = common_pb2.TraceContext.FromString(tracing.to_pb_trace().SerializeToString())
        assert tracing.trace_id() == format(parent.get_span_context().trace_id, "032x")
    tracer.start_span("child", context=tracing.from_pb_trace(message)).end()
    first, second = spans(exporter.path)
    assert second["trace_id"] == first["trace_id"]
    assert second["parent_span_id"] == first["span_id"]
    assert first["parent_span_id"] == ""
    assert first["resource"]["process.pid"] == 7  # type: ignore[index]


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_context_starts_nothing(traceparent: str) -> None:
    context = tracing.from_pb_trace(common_pb2.TraceContext(traceparent=traceparent))
    assert not trace.get_current_span(context).get_span_context().is_valid
    assert tracing.record_span("orphan", context, 1.0, 2.0) is trace.INVALID_SPAN


def test_trace_files_are_bounded(provider: TracerProvider, exporter: tracing.FileSpanExporter) -> None:
    for _ in range(50):
        provider.get_tracer("test").start_span("span", context=Context()).end()
    kept = sorted(exporter.path.parent.iterdir())
    assert [file.name for file in kept] == ["router.jsonl", "router.jsonl.1"]
    assert all(file.stat().st_size < 3_000 for file in kept)


def test_a_trace_file_that_cannot_be_turned_over_costs_spans_and_nothing_after(
    provider: TracerProvider, exporter: tracing.FileSpanExporter
) -> None:
    blocker = exporter.path.with_name("router.jsonl.1")
    blocker.mkdir()
    tracer = provider.get_tracer("test")
    for _ in range(20):
        tracer.start_span("lost", context=Context()).end()
    blocker.rmdir()
    tracer.start_span("first", context=Context()).end()
    tracer.start_span("second", context=Context()).end()
    assert spans(exporter.path)[-1]["name"] == "second"


def test_logs_hide_keys_and_secrets() -> None:
    key_id, key = new_key()
    event = redact(None, "info", {"event": f"refused {key}", "pepper": "abc", "tenant": "acme"})
    assert event == {"event": f"refused fb_{key_id}_[redacted]", "pepper": "[redacted]", "tenant": "acme"}


def test_keys_are_recognised_and_hashed_with_the_pepper() -> None:
    key_id, key = new_key()
    assert parse_key_id(key) == key_id
    assert parse_key_id(key + "x") is None
    assert hash_key(b"one", key) != hash_key(b"two", key)
    assert len(hash_key(b"one", key)) == 32
