"""Values that more than one edge of the worker sends or takes, to and from messages."""

from __future__ import annotations

from google.protobuf import duration_pb2

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.rpc.status import from_pb_duration
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.usage import Ending
from forebay.worker.engine import Capacity, EngineState

DEFAULT_EXPIRY_S = 2.0

_REASONS = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    Ending.STOP: common_pb2.FINISH_REASON_STOP,
    Ending.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Ending.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
    Ending.BUDGET: common_pb2.FINISH_REASON_BUDGET,
    Ending.ERROR: common_pb2.FINISH_REASON_ERROR,
    Ending.HANDED_OVER: common_pb2.FINISH_REASON_UNSPECIFIED,  # the request has not ended
}


def from_pb_attempt(message: scheduler_pb2.AttemptRef) -> AttemptId:
    """Returns the attempt that a message names."""
    return AttemptId(message.request_id, message.attempt)


def to_pb_attempt(id: AttemptId) -> scheduler_pb2.AttemptRef:
    """Returns an attempt's name."""
    return scheduler_pb2.AttemptRef(request_id=id.request_id, attempt=id.attempt)


def from_pb_expiry(message: scheduler_pb2.Grant | scheduler_pb2.Batch.Entry) -> float:
    """Returns the seconds that are left of a grant or an entry."""
    return from_pb_duration(message.expires_in) if message.HasField("expires_in") else DEFAULT_EXPIRY_S


def to_pb_reason(ending: Ending | None) -> common_pb2.FinishReason.ValueType:
    """Returns why an attempt ended; None for a payload that never reached the engine."""
    return _REASONS[ending]


def to_pb_capacity(capacity: Capacity) -> scheduler_pb2.Capacity:
    """Returns what an engine holds at most."""
    return scheduler_pb2.Capacity(
        kv_tokens=capacity.kv_tokens,
        block_tokens=capacity.block_tokens,
        max_num_seqs=capacity.max_num_seqs,
        max_num_batched_tokens=capacity.max_num_batched_tokens,
        max_model_len=capacity.max_model_len,
        max_adapters=capacity.max_adapters,
    )


def to_pb_engine_state(state: EngineState, *, healthy: bool) -> scheduler_pb2.EngineState:
    """Returns an engine's load; `healthy` is the worker's word, which needs more than the engine's."""
    return scheduler_pb2.EngineState(
        running=state.running,
        waiting=state.waiting,
        kv_tokens_used=state.kv_tokens_used,
        preemptions=state.preemptions,
        healthy=healthy,
        adapters=state.adapters,
    )


def to_pb_nanoseconds(nanoseconds: int) -> duration_pb2.Duration:
    """Returns engine time exactly: a float's detour would not conserve it (law 6)."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)
