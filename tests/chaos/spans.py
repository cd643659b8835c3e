"""Arithmetic on spans of time. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from .records import Span

ALWAYS: tuple[Span, ...] = ((-math.inf, math.inf),)


def union(spans: Iterable[Span]) -> list[Span]:
    """Returns when any of the spans is, in order and without overlap."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def outside(spans: Iterable[Span]) -> list[Span]:
    """Returns when none of the spans is."""
    edges = [-math.inf, *(edge for span in union(spans) for edge in span), math.inf]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def intersection(*sets: Iterable[Span]) -> list[Span]:
    """Returns when there is a span in each of the sets."""

    def both(one: Iterable[Span], other: Iterable[Span]) -> list[Span]:
        common = ((max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other)
        return [(start, end) for start, end in common if start < end]

    return reduce(both, map(union, sets), list(ALWAYS))


def seconds_within(spans: Iterable[Span], since: float, until: float) -> float:
    """Returns for how long there was a span between two times."""
    return sum(end - start for start, end in intersection(spans, [(since, until)]))


def covers(spans: Iterable[Span], since: float, until: float) -> bool:
    """Returns whether there was a span at each moment between two times."""
    return any(start <= since and until < end for start, end in union(spans))
