"""What is written along the axes of plots."""

from __future__ import annotations

import math

import pytest

from forebay.simulator import plots


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"), (0.0000123, "0.0123 ms"), (0.0005, "0.5 ms"), (0.02, "20 ms"), (0.99949, "999 ms"), (0.9996, "1 s"),
        (1.25, "1.25 s"), (30.0, "30 s"), (59.99, "1 min"), (100.0, "1 min 40 s"),
        (1_000.0, "16 min 40 s"), (10_000.0, "2 h 46 min"),
        (86_400.0, "1 d"), (1e6, "11 d 13 h"), (math.inf, "an endless time"),
    ],
)  # fmt: skip
def test_a_span_has_no_exponent(seconds: float, text: str) -> None:
    assert plots._span(seconds) == text


@pytest.mark.parametrize(
    ("least", "most", "texts"),
    [
        (0.03, 0.4, ["20 ms", "50 ms", "100 ms", "200 ms", "500 ms"]),
        (1.0, 1.0, ["1 s", "2 s"]),
        (40.0, 1_000.0, ["30 s", "1 min", "2 min", "5 min", "10 min", "30 min"]),
        (0.02, 2_000.0, ["10 ms", "100 ms", "1 s", "10 s", "1 min", "10 min", "1 h"]),
        (1e-9, 1e9, None),
    ],
)
def test_ticks_are_round_spans_that_enclose_the_axis(least: float, most: float, texts: list[str] | None) -> None:
    ticks = plots._span_ticks(least, most)
    assert 2 <= len(ticks) <= plots.MAX_TICKS
    assert texts is None or [plots._span(tick) for tick in ticks] == texts
