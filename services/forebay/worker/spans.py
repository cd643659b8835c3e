"""The spans of an attempt, recorded at its end when all times are known.

worker.execute            under the router's span, by the trace context that came with the payload
├─ engine.queue           payload's arrival → first engine step
├─ engine.prefill         first step → first token
└─ engine.decode          first token → last token
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context

from forebay.telemetry.tracing import record_span, to_pb_trace
from forebay.worker.domain.attempt import Attempt
from forebay.worker.domain.usage import Ending, Trace
from forebay.worker.engine import Sampling


def trace_of(parent: Context) -> Trace:
    """Returns a context that came with a payload, as an event carries it whose attempt's own spans are never recorded."""
    context = to_pb_trace(trace.get_current_span(parent))
    return Trace(context.traceparent, context.tracestate)


def record_attempt(
    attempt: Attempt, ending: Ending, sampling: Sampling, parent: Context, worker_id: str, now: float, monotonic: float
) -> Trace:
    """Records an attempt's spans and returns the context of `worker.execute`; an untraced attempt has an empty one.

    Args:
        parent: the context that came with the payload.
        now: the wall clock at the attempt's end; monotonic: the monotonic clock at the same moment.
    """
    phases = attempt.phases(monotonic)
    offset = now - monotonic
    execute = record_span(
        "worker.execute",
        parent,
        offset + phases.received_at,
        now,
        {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": attempt.attribution.model,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.response.finish_reasons": [ending.value],
            "gen_ai.usage.input_tokens": attempt.prompt_tokens,
            "gen_ai.usage.output_tokens": attempt.generated_tokens,
            "forebay.request_id": attempt.id.request_id,
            "forebay.attempt": attempt.id.attempt,
            "forebay.tenant_id": attempt.attribution.tenant_id,
            "forebay.worker_id": worker_id,
            "forebay.cached_tokens": attempt.cached_tokens,
            "forebay.gpu_time_ns": attempt.gpu_time_ns,
        },
    )
    if not execute.get_span_context().is_valid:
        return Trace()
    below = trace.set_span_in_context(execute)
    record_span("engine.queue", below, offset + phases.received_at, offset + phases.scheduled_at)
    if attempt.scheduled:
        record_span("engine.prefill", below, offset + phases.scheduled_at, offset + phases.first_token_at)
    if attempt.prefilled:
        record_span("engine.decode", below, offset + phases.first_token_at, offset + phases.last_token_at)
    context = to_pb_trace(execute)
    return Trace(context.traceparent, context.tracestate)
