"""`Start` from the wire, checked: what is wrong is named field by field, and nothing unbounded gets further than this."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.api.worker.v1 import worker_pb2
from forebay.errors import Code, FieldViolation, MeshError
from forebay.rpc.status import from_pb_duration
from forebay.telemetry.tracing import from_pb_trace
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.grant import Grant
from forebay.worker.domain.usage import Attribution
from forebay.worker.engine import Sampling
from forebay.worker.service import Start

DEFAULT_EXPIRY_S = 2.0
MAX_HELD_TEXT_BYTES = 16 << 10
MAX_LABELS = 64
MAX_NAME_BYTES = 256
MAX_STOPS = 16
MAX_STOP_TOKENS = 64

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")

_Real = Literal["temperature", "min_p", "presence_penalty", "frequency_penalty", "top_p", "repetition_penalty"]

# (field, default, lowest, highest); the lowest of the last two is itself not allowed.
_RANGES: tuple[tuple[_Real, float, float, float], ...] = (
    ("temperature", 1.0, 0.0, 2.0),
    ("min_p", 0.0, 0.0, 1.0),
    ("presence_penalty", 0.0, -2.0, 2.0),
    ("frequency_penalty", 0.0, -2.0, 2.0),
    ("top_p", 1.0, 0.0, 1.0),
    ("repetition_penalty", 1.0, 0.0, 2.0),
)
_ABOVE_LOWEST = {"top_p", "repetition_penalty"}

_NOT_OFFERED: tuple[Literal["logprobs", "structured_output"], ...] = ("logprobs", "structured_output")


def from_pb_attempt(message: scheduler_pb2.AttemptRef) -> AttemptId:
    """Returns the attempt that a message names."""
    return AttemptId(message.request_id, message.attempt)


def from_pb_start(message: worker_pb2.Start) -> Start:
    """Returns a payload and its grant.

    Raises:
        MeshError: INVALID_ARGUMENT with every field that is wrong, or UNIMPLEMENTED for sampling that the engines do not offer.
    """
    for name in _NOT_OFFERED:
        if message.sampling.HasField(name):
            raise MeshError(
                Code.UNIMPLEMENTED, "NOT_OFFERED", f"sampling.{name} is not offered by this worker; leave it out"
            )
    violations = [*_wrong_payload(message), *_wrong_sampling(message.sampling, len(message.continuation.token_ids))]
    if violations:
        raise MeshError(
            Code.INVALID_ARGUMENT,
            "BAD_PAYLOAD",
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            field_violations=violations,
        )
    return Start(
        ref=message.ref,
        grant=_from_pb_grant(message.grant),
        attribution=_from_pb_attribution(message.attribution),
        prompt_token_ids=list(message.prompt_token_ids),
        delivered_token_ids=list(message.continuation.token_ids),
        held_text=message.continuation.held_text,
        completion_from=message.continuation.completion_from,
        sampling=_from_pb_sampling(message.sampling),
        remaining=from_pb_duration(message.remaining) if message.HasField("remaining") else None,
        trace=from_pb_trace(message.trace),
    )


def _from_pb_grant(message: scheduler_pb2.Grant) -> Grant:
    return Grant(
        id=from_pb_attempt(message.ref),
        worker_id=message.worker_id,
        incarnation=message.worker_incarnation,
        epoch=message.epoch,
        batch_id=message.batch_id,
        tenant_id=message.tenant_id,
        adapter=message.adapter,
        priority=message.priority,
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        kv_tokens=message.kv_tokens,
        expires_in=from_pb_duration(message.expires_in) if message.HasField("expires_in") else DEFAULT_EXPIRY_S,
    )


def _from_pb_attribution(message: worker_pb2.Attribution) -> Attribution:
    return Attribution(
        tenant_id=message.tenant_id,
        key_id=message.key_id,
        plan=message.plan,
        priced_by_plan=message.priced_by_plan,
        service_class=message.service_class,
        model=message.model,
        queue_time=from_pb_duration(message.queue_time),
        client_request_id=message.client_request_id,
        labels=dict(message.labels),
    )


def _from_pb_sampling(message: common_pb2.Sampling) -> Sampling:
    return Sampling(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        top_k=message.top_k,
        seed=message.seed,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        **{name: getattr(message, name) if message.HasField(name) else default for name, default, _, _ in _RANGES},
    )


def _wrong_payload(message: worker_pb2.Start) -> Iterator[FieldViolation]:
    ref, delivered = message.grant.ref, message.continuation
    if not message.ref:
        yield FieldViolation("ref", "must be 1 or more")
    if not _REQUEST_ID.fullmatch(ref.request_id) or not ref.attempt:
        yield FieldViolation("grant.ref", "must hold a request_id of 32 lower-case hex digits and an attempt from 1")
    if not message.prompt_token_ids:
        yield FieldViolation("prompt_token_ids", "must hold at least one token")
    if delivered.token_ids and ref.attempt == 1:
        yield FieldViolation("continuation", "attempt 1 continues nothing")
    if delivered.completion_from > len(delivered.token_ids):
        yield FieldViolation("continuation.completion_from", "must not be past the tokens delivered")
    if len(delivered.held_text.encode()) > MAX_HELD_TEXT_BYTES:
        yield FieldViolation("continuation.held_text", f"must have at most {MAX_HELD_TEXT_BYTES} bytes")
    attribution = message.attribution
    if not attribution.tenant_id:
        yield FieldViolation("attribution.tenant_id", "must be set")
    names = ("tenant_id", "key_id", "plan", "service_class", "model", "client_request_id")
    texts = [*(getattr(attribution, name) for name in names), *attribution.labels, *attribution.labels.values()]
    if len(attribution.labels) > MAX_LABELS or any(len(text.encode()) > MAX_NAME_BYTES for text in texts):
        yield FieldViolation(
            "attribution", f"must have at most {MAX_LABELS} labels and {MAX_NAME_BYTES} bytes in each text"
        )


def _wrong_sampling(sampling: common_pb2.Sampling, delivered: int) -> Iterator[FieldViolation]:
    if not sampling.HasField("seed"):
        yield FieldViolation("sampling.seed", "must be set, so that a continuation can repeat it")
    if sampling.max_tokens <= delivered:
        yield FieldViolation("sampling.max_tokens", "must be set and leave a token to generate beyond those delivered")
    if sampling.min_tokens > sampling.max_tokens:
        yield FieldViolation("sampling.min_tokens", "must be at most max_tokens")
    if sampling.HasField("n") and sampling.n != 1:
        yield FieldViolation("sampling.n", "must be 1; several answers are several requests")
    for name, _, lowest, highest in _RANGES:
        value = getattr(sampling, name)
        above = value > lowest if name in _ABOVE_LOWEST else value >= lowest
        if sampling.HasField(name) and not (above and value <= highest):
            bound = "above" if name in _ABOVE_LOWEST else "from"
            yield FieldViolation(f"sampling.{name}", f"must be {bound} {lowest:g} to {highest:g}")
    if len(sampling.stop) > MAX_STOPS or any(not 1 <= len(stop.encode()) <= MAX_NAME_BYTES for stop in sampling.stop):
        yield FieldViolation("sampling.stop", f"must be at most {MAX_STOPS} strings of 1 to {MAX_NAME_BYTES} bytes")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        yield FieldViolation("sampling.stop_token_ids", f"must be at most {MAX_STOP_TOKENS} tokens")
