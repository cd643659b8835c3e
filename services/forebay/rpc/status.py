"""`MeshError` to and from what crosses the wire: `google.rpc.Status` with its details, and `common.v1.Error` inside sessions.

The details of google.rpc are packed at run time and are no import of the contracts, so that clients' stubs need nothing but
protobuf itself.
"""

from __future__ import annotations

import re

import grpc
from google.protobuf import any_pb2, duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from forebay.api.common.v1 import common_pb2
from forebay.errors import Code, FieldViolation, MeshError, QuotaViolation

DOMAIN = "forebay"
_VIOLATION = re.compile(r"(.*) ([^ ]+) (-?[0-9]{1,40}) (-?[0-9]{1,40}) (-?[0-9]{1,40})", re.DOTALL)


def to_pb_duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a Duration, to the nanosecond."""
    nanos = round(seconds * 1e9)
    sign = -1 if nanos < 0 else 1
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    return duration_pb2.Duration(seconds=sign * whole, nanos=sign * rest)


def from_pb_duration(duration: duration_pb2.Duration) -> float:
    """Returns a Duration in seconds; like those below, without complaint about nanoseconds out of range, which harm nobody."""
    return duration.seconds + duration.nanos / 1e9


def from_pb_timestamp(timestamp: timestamp_pb2.Timestamp) -> float:
    """Returns a Timestamp in seconds since the epoch."""
    return timestamp.seconds + timestamp.nanos / 1e9


def nanoseconds_of(duration: duration_pb2.Duration) -> int:
    """Returns a Duration in whole nanoseconds."""
    return duration.seconds * 10**9 + duration.nanos


def to_pb_error(error: MeshError) -> common_pb2.Error:
    """Returns an error as it travels inside a session."""
    return common_pb2.Error(
        code=common_pb2.ErrorCode.ValueType(error.code.value),
        reason=error.reason,
        message=error.message,
        retry_after=None if error.retry_after is None else to_pb_duration(error.retry_after),
        quota_violations=[
            common_pb2.QuotaViolation(subject=v.subject, limit=v.limit, value=v.value, used=v.used, asked=v.asked)
            for v in error.quota_violations
        ],
        field_violations=[
            common_pb2.FieldViolation(field=v.field, description=v.description) for v in error.field_violations
        ],
        metadata=error.metadata,
    )


def from_pb_error(message: common_pb2.Error) -> MeshError:
    """Returns the error that a session's message carries."""
    return MeshError(
        _code(message.code),
        message.reason or "UNKNOWN",
        message.message,
        retry_after=from_pb_duration(message.retry_after) if message.HasField("retry_after") else None,
        quota_violations=[
            QuotaViolation(v.subject, v.limit, v.value, v.used, v.asked) for v in message.quota_violations
        ],
        field_violations=[FieldViolation(v.field, v.description) for v in message.field_violations],
        metadata=message.metadata,
    )


def to_status(error: MeshError) -> status_pb2.Status:
    """Returns an error as google.rpc.Status: ErrorInfo always, QuotaFailure, BadRequest and RetryInfo where they apply."""
    metadata = dict(error.metadata)
    for n, violation in enumerate(error.quota_violations):
        # QuotaFailure of this protobuf release has sentences only; programs read the numbers here.
        metadata[f"quota.{n}"] = (
            f"{violation.subject} {violation.limit} {violation.value} {violation.used} {violation.asked}"
        )
    details: list[any_pb2.Any] = [
        _pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    ]
    if error.quota_violations:
        violations = [
            error_details_pb2.QuotaFailure.Violation(subject=v.subject, description=v.sentence())
            for v in error.quota_violations
        ]
        details.append(_pack(error_details_pb2.QuotaFailure(violations=violations)))
    if error.field_violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.field_violations
        ]
        details.append(_pack(error_details_pb2.BadRequest(field_violations=fields)))
    if error.retry_after is not None:
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=to_pb_duration(error.retry_after))))
    return status_pb2.Status(code=error.code.value, message=error.message, details=details)


def from_status(status: status_pb2.Status) -> MeshError:
    """Returns the error that a google.rpc.Status tells of, whoever made it."""
    reason, retry_after = _code(status.code).name, None
    metadata: dict[str, str] = {}
    quotas: list[QuotaViolation] = []
    fields: list[FieldViolation] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = _unpack(detail, error_details_pb2.ErrorInfo())
            reason = info.reason
            metadata = dict(info.metadata)
            while (found := _VIOLATION.fullmatch(metadata.get(f"quota.{len(quotas)}", ""))) is not None:
                del metadata[f"quota.{len(quotas)}"]
                quotas.append(QuotaViolation(found[1], found[2], *map(int, found.groups()[2:])))
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = _unpack(detail, error_details_pb2.BadRequest())
            fields += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_after = from_pb_duration(_unpack(detail, error_details_pb2.RetryInfo()).retry_delay)
    return MeshError(
        _code(status.code),
        reason,
        status.message,
        retry_after=retry_after,
        quota_violations=quotas,
        field_violations=fields,
        metadata=metadata,
    )


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """Returns the error of a failed call: the server's own where it sent one, else what gRPC says of the connection."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None  # the server's details have come, and then the call ended in another way
    if status is not None:
        return from_status(status)
    code = error.code()
    return MeshError(_code(code.value[0]), f"GRPC_{code.name}", error.details() or code.name.lower())


def grpc_code(code: Code) -> grpc.StatusCode:
    """Returns gRPC's own name of a code."""
    return grpc.StatusCode[code.name]


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def _pack(detail: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    return packed


def _unpack(packed: any_pb2.Any, into: error_details_pb2.ErrorInfo) -> error_details_pb2.ErrorInfo:
    packed.Unpack(into)
    return into
