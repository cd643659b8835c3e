"""Errors as sentences that say what to do."""

from __future__ import annotations

from forebay.cli.figures import wait
from forebay.errors import Code, MeshError

_CODE_ADVICE = {
    Code.UNAUTHENTICATED: "Give a valid key with --key, or name a tenant that has a development key with --tenant.",
    Code.DEADLINE_EXCEEDED: "The mesh may be overloaded, or the answer too long: see `forebay status`, or lower --max-tokens.",
    Code.INTERNAL: "This is a bug; the logs in the mesh's data directory have the details.",
}
# What the client library says to do is for programs; on the command line these take its place.
_REASONS = {
    "TLS_UNTRUSTED": (
        "the certificate of what answers at {address} comes from no authority that is trusted here, or has expired",
        "Name its authority with --ca FILE; that of a mesh made by `forebay up` is .forebay/certificates/ca.pem.",
    ),
    "TLS_WRONG_NAME": (
        "the certificate of what answers at {address} is for another name",
        "Use that name in --router.",
    ),
    "TLS_NOT_SPOKEN": (
        "what answers at {address} does not speak TLS",
        "Give --insecure if the key may travel in plaintext, where others on the way can read it.",
    ),
    "TLS_EXPECTED": (
        "what answers at {address} takes no plaintext",
        "Give --tls, or --ca FILE with the authority of its certificate.",
    ),
    "NO_ROUTER": ("{message}", "See `forebay status`, or start a mesh with `forebay up`."),
    "STREAM_CUT": ("{message}", "`forebay usage tail --request {request_id}` shows what was billed."),
    "BAD_CURSOR": (
        "the cursor is none of this ledger",
        "--from takes beginning, now, a span such as 30m, 2h or 7d, or a cursor of this ledger.",
    ),
    "TIMEOUT": ("{message}", "See `forebay status`, or lower --max-tokens."),
}


def explain(error: MeshError) -> str:
    """Returns an error as a few lines for a terminal: what happened, which limits or fields, what to do."""
    if error.reason in _REASONS:
        return _told(error)
    lines = [f"{error.message.rstrip('.')} ({error.reason})"]
    lines += [f"  {violation.sentence()}" for violation in error.quota_violations]
    lines += [
        f"  {violation.field}: {violation.description}"
        for violation in error.field_violations
        if f"{violation.field} {violation.description}" not in error.message
    ]
    if error.retry_after is not None:
        lines.append(f"Try again in {wait(error.retry_after)}.")
    elif error.reason == "GRPC_UNAVAILABLE":
        lines = [_lost(error.message), "See `forebay status`, or start a mesh with `forebay up`."]
    elif error.code in _CODE_ADVICE and error.reason not in ("NO_ANSWER", "BAD_REQUEST"):
        lines.append(_CODE_ADVICE[error.code])
    return "\n".join(lines)


def _told(error: MeshError) -> str:
    happened, advice = _REASONS[error.reason]
    known = {"address": "that address", "request_id": ""} | error.metadata | {"message": error.message}
    lines = [happened.format_map(known)]
    if "{request_id}" not in advice or known["request_id"]:
        lines.append(advice.format_map(known))
    return "\n".join(lines)


def _lost(details: str) -> str:
    """Returns what gRPC's word of an unavailable server means."""
    if "connect" in details or not details:
        return "nothing answers at that address; is the mesh running?"
    return f"the connection broke off ({details})"
