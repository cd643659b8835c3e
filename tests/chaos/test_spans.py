"""Spans: when any is, when none is, when all are."""

from __future__ import annotations

import math

from .spans import covers, intersection, outside, seconds_within, union

FOREVER = math.inf


def test_spans_that_touch_are_one() -> None:
    assert union([(4.0, 5.0), (1.0, 2.0), (2.0, 3.0), (1.5, 2.5)]) == [(1.0, 3.0), (4.0, 5.0)]
    assert union([]) == []


def test_what_is_outside() -> None:
    assert outside([]) == [(-FOREVER, FOREVER)]
    assert outside([(3.0, FOREVER), (1.0, 2.0)]) == [(-FOREVER, 1.0), (2.0, 3.0)]
    assert outside([(-FOREVER, FOREVER)]) == []


def test_what_all_have_in_common() -> None:
    assert intersection([(0.0, 2.0), (3.0, 6.0)], [(1.0, 4.0)], outside([(3.5, 3.6)])) == [
        (1.0, 2.0),
        (3.0, 3.5),
        (3.6, 4.0),
    ]
    assert intersection([(0.0, 1.0)], []) == []


def test_how_long_and_whether_always() -> None:
    spans = [(0.0, 2.0), (3.0, FOREVER)]
    assert seconds_within(spans, 1.0, 5.0) == 3.0
    assert covers(spans, 3.0, 100.0)
    assert not covers(spans, 1.0, 2.0)
    assert not covers(spans, 1.0, 4.0)
