"""The engine's values as messages."""

from __future__ import annotations

from google.protobuf import duration_pb2

from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.worker.engine import Capacity, EngineState


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
    )


def to_pb_nanoseconds(nanoseconds: int) -> duration_pb2.Duration:
    """Returns engine time exactly: a float's detour would not conserve it (law 6)."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)
