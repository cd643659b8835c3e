"""Residual lengths, against their definition."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from forebay.scheduler.domain.length_model import BUCKET, MIN_SAMPLES, REFRESH, WINDOW, LengthModel

LONG = 100_000


def learnt(lengths: list[int]) -> LengthModel:
    model = LengthModel()
    for length in lengths:
        model.completed(length)
    return model


def mean_residual(lengths: list[int], generated: int) -> int:
    return max(1, round(statistics.fmean([length - generated for length in lengths if length > generated])))


@given(st.lists(st.integers(1, 300), min_size=2, max_size=6).map(lambda part: part * REFRESH))
def test_it_is_the_mean_of_what_longer_ones_generated_yet(lengths: list[int]) -> None:
    model = learnt(lengths)
    for generated in range(0, max(lengths), BUCKET):
        expected = mean_residual(lengths, generated)
        assert model.remaining(generated, LONG) == model.remaining(generated + BUCKET - 1, LONG) == expected
    # Longer than any: as for the longest of which something is known.
    last = (max(lengths) - 1) // BUCKET * BUCKET
    assert model.remaining(max(lengths) + 50, LONG) == mean_residual(lengths, last)


def test_before_enough_have_ended_each_is_as_long_as_it_may_become() -> None:
    model = learnt([10] * (MIN_SAMPLES - 1))
    assert model.remaining(3, 500) == 497
    model.completed(10)
    assert model.remaining(3, 500) == 10


def test_it_is_never_more_than_a_request_may_generate() -> None:
    model = learnt([100] * MIN_SAMPLES)
    assert model.remaining(8, 20) == 12


def test_what_is_old_is_forgotten() -> None:
    model = learnt([1_000] * WINDOW)
    for _ in range(WINDOW):
        model.completed(10)
    assert model.remaining(0, LONG) == 10


def test_requests_that_yield_nothing_are_learnt_as_well() -> None:
    assert learnt([0] * MIN_SAMPLES).remaining(0, LONG) == 1
