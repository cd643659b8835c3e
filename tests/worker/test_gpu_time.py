"""Shares of a step's time sum to it exactly and differ by at most a nanosecond."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker.domain.gpu_time import equal_shares


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 512))
def test_parts_sum_to_the_whole_and_are_equal(total_ns: int, parts: int) -> None:
    shares = equal_shares(total_ns, parts)
    assert len(shares) == parts
    assert sum(shares) == total_ns
    assert max(shares) - min(shares) <= 1


def test_nobody_gets_nothing() -> None:
    assert equal_shares(5, 0) == []
