"""How calls end: typed by our servers, by gRPC itself for a known reason, or in a way that is a bug."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

C = grpc.StatusCode

# Ends that no handler of ours can have a say in, so that they carry no ErrorInfo: (code, what its text says, why).
BY_GRPC: tuple[tuple[grpc.StatusCode, str, str], ...] = (
    (C.DEADLINE_EXCEEDED, r"Deadline Exceeded", "the client's own clock ended the call"),
    (C.CANCELLED, r"Locally cancelled|CANCELLED|Cancelled", "the client itself cancelled the call"),
    (C.RESOURCE_EXHAUSTED, r"message larger than max", "gRPC refuses the message before it is decoded"),
    (C.RESOURCE_EXHAUSTED, r"metadata size exceeds", "HTTP/2 refuses the headers before there is a call"),
    (C.UNIMPLEMENTED, r"Method not found", "there is no handler that could say more"),
    (C.INTERNAL, r"^Internal error from Core$", "the client's own: it wrote to a call that the server had just ended"),
    (C.NOT_FOUND, r"^$", "the health service is gRPC's own and its protocol has this bare code"),
)


@dataclass(slots=True)
class Outcomes:
    """A count of how calls ended.

    Attributes:
        by_end: how often a method's calls ended so; (method, code, reason).
        untyped: what must not be, with an example of each; (method, code, text).
    """

    by_end: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    untyped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def answered(self, method: str) -> None:
        """Counts a call that ended well."""
        self.by_end[method, "OK", ""] += 1

    def failed(self, method: str, error: grpc.aio.AioRpcError, example: str) -> None:
        """Counts a call that failed; `example` says how it was made."""
        code, text = error.code(), error.details() or ""
        reason = _reason(error)
        by_grpc = reason is None and any(code is c and re.search(pattern, text) for c, pattern, _ in BY_GRPC)
        if by_grpc:
            reason = "(by gRPC)"
        elif reason is None or code in (C.INTERNAL, C.UNKNOWN):
            key = (method, code.name, re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:160])
            self.untyped[key] += 1
            self.examples.setdefault(key, example)
            reason = reason or "(untyped)"
        self.by_end[method, code.name, reason] += 1


def _reason(error: grpc.aio.AioRpcError) -> str | None:
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        # The server's details have come, and then the client's own clock or cancellation ended the call.
        status = None
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info.reason
    return None
