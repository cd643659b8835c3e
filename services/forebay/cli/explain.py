"""Errors as sentences that say what to do."""

from __future__ import annotations

from forebay.cli.figures import duration
from forebay.errors import Code, MeshError

_ADVICE = {
    Code.UNAUTHENTICATED: "Give a valid key with --key, or name a tenant that has a development key with --tenant.",
    Code.DEADLINE_EXCEEDED: "The mesh may be overloaded, or the answer too long: see `forebay status`, or lower --max-tokens.",
    Code.UNIMPLEMENTED: "What answers there is no forebay service, or of another version: check the address.",
    Code.INTERNAL: "This is a bug; the logs in the mesh's data directory have the details.",
}


def explain(error: MeshError) -> str:
    """Returns an error as a few lines for a terminal: what happened, which limits or fields, what to do."""
    lines = [f"{error.message.rstrip('.')} ({error.reason})"]
    lines += [f"  {violation.sentence()}" for violation in error.quota_violations]
    lines += [
        f"  {violation.field}: {violation.description}"
        for violation in error.field_violations
        if f"{violation.field} {violation.description}" not in error.message
    ]
    if error.retry_after is not None:
        lines.append(f"Try again in {duration(error.retry_after)}.")
    elif error.reason in ("GRPC_UNAVAILABLE", "NO_ROUTER"):
        where = (
            error.message if error.reason == "NO_ROUTER" else "nothing answers at that address; is the mesh running?"
        )
        lines = [where, "See `forebay status`, or start one with `forebay up`."]
    elif error.code in _ADVICE:
        lines.append(_ADVICE[error.code])
    return "\n".join(lines)
