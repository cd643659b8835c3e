"""Trace headers from outside: what is valid is kept, what is not is dropped, and nothing is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import TraceState

from forebay.telemetry import tracing
from forebay.telemetry.w3c import MAX_TRACESTATE, usable_headers, usable_tracestate

PARENT = f"00-{'1' * 32}-{'2' * 16}-01"


def member(key: str, length: int) -> str:
    return f"{key}={'v' * (length - len(key) - 1)}"


FOUR = [member(f"b{n}", 100) for n in range(4)]


@pytest.mark.parametrize(
    ("tracestate", "usable"),
    [
        ("", ""),
        ("a=1", "a=1"),
        (" a=1 ,\t b=2 ,, ", "a=1,b=2"),
        ("t@v=x,0t@v=y", "t@v=x,0t@v=y"),
        (member("a", 255), member("a", 255)),
        # Too long: members above 128 characters leave first, from the end, then others from the end.
        (",".join([member("a", 129), member("b", 200), member("c", 200)]), f"{member('a', 129)},{member('b', 200)}"),
        (",".join([member("a", 200), *FOUR]), ",".join(FOUR)),
        (",".join(member(f"b{n}", 120) for n in range(6)), ",".join(member(f"b{n}", 120) for n in range(4))),
        (",".join(f"k{n}=1" for n in range(40)), ",".join(f"k{n}=1" for n in range(32))),
        # Malformed as a whole.
        ("=", ""),
        ("a", ""),
        ("A=1", ""),
        ("a=1,a=2", ""),
        ("a=1=2", ""),
        ("a=é", ""),
        ("a=1,b", ""),
        (member("a", 300), ""),
        ("a=1," * 100_000, ""),
    ],
)  # fmt: skip
def test_a_tracestate_is_cut_by_whole_members_or_dropped(tracestate: str, usable: str) -> None:
    assert usable_tracestate(tracestate) == usable


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        PARENT.upper().replace("1", "A"),
        PARENT + "-more",
        PARENT[:-1],
        f"ff-{'1' * 32}-{'2' * 16}-01",
        f"00-{'0' * 32}-{'2' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        f"00-{'1' * 32}-{'2' * 16}-zz",
        PARENT + "x" * 9_000,
        "00-\U0001f642",
    ],
)
def test_a_malformed_traceparent_is_none(traceparent: str) -> None:
    assert usable_headers({"traceparent": traceparent, "tracestate": "a=1"}) == {}
    context = tracing.from_headers({"traceparent": traceparent, "tracestate": "a=1"})
    assert not trace.get_current_span(context).get_span_context().is_valid


@pytest.mark.parametrize("traceparent", [PARENT, f" {PARENT} ", f"01-{'1' * 32}-{'2' * 16}-01-later"])
def test_a_traceparent_is_kept_with_or_without_its_tracestate(traceparent: str) -> None:
    for tracestate in ("", "=", "a=1", member("a", 200) + "," + member("b", 200) + "," + member("c", 200)):
        context = tracing.from_headers({"traceparent": traceparent, "tracestate": tracestate, "baggage": "=;,"})
        span = trace.get_current_span(context)
        assert tracing.trace_id(span) == "1" * 32
        message = tracing.to_pb_trace(span)
        assert message.tracestate == usable_tracestate(tracestate)
        assert tracing.trace_id(trace.get_current_span(tracing.from_pb_trace(message))) == "1" * 32


KEYS = st.from_regex(r"[a-z][a-z0-9_*/-]{0,20}", fullmatch=True)
STATES = st.lists(st.tuples(KEYS, st.text("ab 1;:", min_size=0, max_size=200)), max_size=40).map(
    lambda members: ",".join(f"{key}={value}x" for key, value in members)
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tracestate=STATES | st.text(max_size=40))
def test_what_is_usable_is_within_bounds_and_understood(tracestate: str) -> None:
    usable = usable_tracestate(tracestate)
    assert len(usable) <= MAX_TRACESTATE
    assert usable_tracestate(usable) == usable
    assert TraceState.from_header([usable]).to_header() == usable
