"""One request is one trace: the call's span is the root, the router's phases are below it, and peers are told under which."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError

from .conftest import METADATA, RouterWorld, options_for
from .peers import soon
from .streams import failure

CLIENT_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    return exporter


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


async def test_one_request_is_one_trace(world: RouterWorld, spans: InMemorySpanExporter) -> None:
    await world.start()
    call = world.client.StreamGenerate(
        router_pb2.StreamGenerateRequest(options=options_for()),
        metadata=(*METADATA, ("traceparent", f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01")),
    )
    first = await soon(call.read())
    assert first.started.trace_id == CLIENT_TRACE
    reserve = await soon(world.quota.reserves.get())
    submission = await soon(world.scheduler.submissions.get())
    start = await soon(world.worker.starts.get())
    world.worker.say(start.ref, 0, [1], "a")
    world.worker.finish(start, 1, common_pb2.FINISH_REASON_LENGTH)
    settle = await soon(world.quota.settles.get())
    while await soon(call.read()):
        pass
    # The root ends once its last word has left, which the client may hear a moment earlier.
    await world.server.drain(1)

    by_name = {span.name: span for span in spans.get_finished_spans()}
    root = by_name["router.StreamGenerate"]
    assert root.parent is not None
    assert format(root.parent.span_id, "016x") == CLIENT_SPAN
    assert {format(span.get_span_context().trace_id, "032x") for span in by_name.values()} == {CLIENT_TRACE}  # type: ignore[union-attr]
    phases = ("router.tokenize", "router.reserve", "router.queue", "router.stream")
    for phase in phases:
        parent = by_name[phase].parent
        assert parent is not None
        assert parent.span_id == root.get_span_context().span_id  # type: ignore[union-attr]
    told = (reserve.trace, submission.trace, start.trace, settle.trace)
    under = ("router.reserve", "router.queue", "router.stream", "router.StreamGenerate")
    assert [message.traceparent for message in told] == [traceparent(by_name[name]) for name in under]

    attributes = dict(root.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == first.started.prompt_tokens
    assert attributes["gen_ai.usage.output_tokens"] == 1
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["forebay.tenant"] == "acme"
    assert "hello" not in str([span.attributes for span in by_name.values()]), "no prompt text"


async def test_a_refusal_is_no_failure_of_the_service_and_leaves_none_of_its_words_in_the_trace(
    world: RouterWorld, spans: InMemorySpanExporter
) -> None:
    world.quota.refusal = MeshError(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "what a message says of the prompt")
    await world.start()
    assert (await failure(world.stream())).reason == "QUOTA_EXCEEDED"
    await world.server.drain(1)
    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert dict(by_name["router.StreamGenerate"].attributes or {})["error.type"] == "QUOTA_EXCEEDED"
    assert {name: span.status.status_code for name, span in by_name.items()} == dict.fromkeys(by_name, StatusCode.UNSET)
    told = [
        (span.status.description, [dict(event.attributes or {}) for event in span.events]) for span in by_name.values()
    ]
    assert "what a message says" not in str(told)
