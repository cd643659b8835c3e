"""`Start` from the wire: bounded, complete, and with every default resolved.

What an engine can run, the engine checks (`engine.check_request`); here is what has to hold before an engine is asked.
"""

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
from forebay.worker.domain.grant import Grant
from forebay.worker.domain.usage import Attribution
from forebay.worker.engine import Sampling
from forebay.worker.messages import from_pb_attempt, from_pb_expiry
from forebay.worker.start import Start

MAX_HELD_TEXT_BYTES = 16 << 10
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 64

# What runs must be recordable afterwards: these are the bounds of usage events.
MAX_ATTEMPT = 1_000
MAX_QUEUE_TIME_S = 100_000.0
MAX_TEXT_BYTES = 256
MAX_LABELS = 16
MAX_LABEL_BYTES = 128

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_TENANT_ID = re.compile(r"[a-z0-9-]{1,63}")

_Real = Literal["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]

_DEFAULTS: dict[_Real, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}

_NOT_OFFERED: tuple[Literal["logprobs", "structured_output"], ...] = ("logprobs", "structured_output")


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
    violations = [
        *_wrong_payload(message),
        *_wrong_attribution(message.attribution),
        *_wrong_sampling(message.sampling, len(message.continuation.token_ids)),
    ]
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
        continues=message.HasField("continuation"),
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
        expires_in=from_pb_expiry(message),
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
        **{name: getattr(message, name) if message.HasField(name) else default for name, default in _DEFAULTS.items()},
    )


def _wrong_payload(message: worker_pb2.Start) -> Iterator[FieldViolation]:
    ref, delivered = message.grant.ref, message.continuation
    if not _REQUEST_ID.fullmatch(ref.request_id):
        yield FieldViolation("grant.ref.request_id", "must be 32 lower-case hex digits")
    if not 1 <= ref.attempt <= MAX_ATTEMPT:
        yield FieldViolation("grant.ref.attempt", f"must be 1 to {MAX_ATTEMPT}")
    if message.HasField("continuation") and ref.attempt == 1:
        yield FieldViolation("continuation", "must be unset: attempt 1 continues nothing")
    if delivered.completion_from > len(delivered.token_ids):
        yield FieldViolation("continuation.completion_from", "must not be past the tokens delivered")
    if _bytes(delivered.held_text) > MAX_HELD_TEXT_BYTES:
        yield FieldViolation("continuation.held_text", f"must have at most {MAX_HELD_TEXT_BYTES} bytes")


def _wrong_attribution(message: worker_pb2.Attribution) -> Iterator[FieldViolation]:
    if not _TENANT_ID.fullmatch(message.tenant_id):
        yield FieldViolation("attribution.tenant_id", "must be 1 to 63 of [a-z0-9-]")
    if not message.model:
        yield FieldViolation("attribution.model", "must be set")
    for name in ("key_id", "plan", "service_class", "model", "client_request_id"):
        if _bytes(getattr(message, name)) > MAX_TEXT_BYTES:
            yield FieldViolation(f"attribution.{name}", f"must have at most {MAX_TEXT_BYTES} bytes")
    if not 0 <= from_pb_duration(message.queue_time) <= MAX_QUEUE_TIME_S:
        yield FieldViolation("attribution.queue_time", f"must be 0 to {MAX_QUEUE_TIME_S:g} s")
    labels = message.labels.items()
    if len(labels) > MAX_LABELS or any(_bytes(text) > MAX_LABEL_BYTES for label in labels for text in label):
        yield FieldViolation(
            "attribution.labels", f"must be at most {MAX_LABELS}, each part of {MAX_LABEL_BYTES} bytes"
        )


def _wrong_sampling(sampling: common_pb2.Sampling, delivered: int) -> Iterator[FieldViolation]:
    if not sampling.HasField("seed"):
        yield FieldViolation("sampling.seed", "must be set, so that a continuation can repeat it")
    if sampling.max_tokens <= delivered:
        yield FieldViolation("sampling.max_tokens", "must be set and leave a token to generate beyond those delivered")
    if sampling.HasField("n") and sampling.n != 1:
        yield FieldViolation("sampling.n", "must be 1; several answers are several requests")
    if len(sampling.stop) > MAX_STOPS or any(_bytes(stop) > MAX_STOP_BYTES for stop in sampling.stop):
        yield FieldViolation("sampling.stop", f"must be at most {MAX_STOPS} strings of at most {MAX_STOP_BYTES} bytes")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        yield FieldViolation("sampling.stop_token_ids", f"must be at most {MAX_STOP_TOKENS} tokens")


def _bytes(text: str) -> int:
    return len(text.encode())
