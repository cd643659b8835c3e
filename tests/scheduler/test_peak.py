"""The future peak, against reckoning it step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.scheduler.domain.peak import Peak, Row

rows = st.tuples(st.integers(-12, 0), st.integers(0, 50))
sets = st.lists(rows, max_size=8)


def peak_step_by_step(running: list[Row]) -> int:
    """Lets every request gain a token a step until its last, and returns the most that they hold together at any time."""
    steps = range(max((-shortened for shortened, _ in running), default=0) + 1)
    return max(sum(held + step for shortened, held in running if -shortened >= step) for step in steps)


@pytest.mark.slow
@given(sets)
def test_it_is_the_most_that_is_ever_held(running: list[Row]) -> None:
    assert Peak(running).tokens == peak_step_by_step(running)


@pytest.mark.slow
@given(sets, rows)
def test_one_more_is_reckoned_without_adding_it(running: list[Row], another: Row) -> None:
    peak = Peak(running)
    assert peak.with_one(another) == peak_step_by_step([*running, another])
    assert peak.tokens == peak_step_by_step(running)


@pytest.mark.slow
@given(sets, sets)
def test_requests_can_be_added_one_by_one(first: list[Row], more: list[Row]) -> None:
    peak = Peak(first)
    assert peak.tokens == peak_step_by_step(first)
    for row in more:
        peak.add(row)
    assert peak.tokens == peak_step_by_step(first + more)
