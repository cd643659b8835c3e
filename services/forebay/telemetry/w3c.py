"""The headers of W3C Trace Context as they come from outside: what is wrong or too long in them is dropped, and refuses nothing.

The rules are those of https://www.w3.org/TR/trace-context/: a `traceparent` that cannot be read begins a new trace, and a
`tracestate` that cannot be read counts as none. One that is too long is cut by whole members: those above 128 characters first,
then from its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_TRACESTATE = 512
_MAX_MEMBERS = 32
_LONG_MEMBER = 128
# More than any client has to say; metadata as a whole is bounded, too.
_MAX_HEADER = 16 << 10

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def usable_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the trace headers of a call that can be used; none for one that is not traced."""
    traceparent = headers.get("traceparent", "").strip(" \t")
    if len(traceparent) > MAX_TRACESTATE or _TRACEPARENT.fullmatch(traceparent) is None:
        return {}
    if traceparent.startswith("00") and len(traceparent) != 55:
        return {}
    tracestate = usable_tracestate(headers.get("tracestate", ""))
    return {"traceparent": traceparent} | ({"tracestate": tracestate} if tracestate else {})


def usable_tracestate(tracestate: str) -> str:
    """Returns a tracestate within its bounds; empty for one that is malformed."""
    if len(tracestate) > _MAX_HEADER:
        return ""
    members = [member for part in tracestate.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    length = sum(map(len, members)) + len(members) - 1
    for at in range(len(members) - 1, -1, -1):
        if length <= MAX_TRACESTATE:
            break
        if len(members[at]) > _LONG_MEMBER:
            length -= len(members.pop(at)) + 1
    while len(members) > _MAX_MEMBERS or length > MAX_TRACESTATE:
        length -= len(members.pop()) + 1
    return ",".join(members)
