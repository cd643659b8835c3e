"""Prefix hashes say that prompts begin alike, and only within one tenant."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.router.domain.prefix import MAX_HASHES, prefix_hashes

KEY = bytes(range(32))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    first=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    second=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    shared=st.lists(st.integers(0, 2**32 - 1), max_size=40),
)
def test_equal_hashes_are_exactly_the_equal_leading_blocks(
    first: list[int], second: list[int], shared: list[int]
) -> None:
    a, b = shared + first, shared + second
    hashes_a, hashes_b = (prefix_hashes(ids, 4, KEY, "m") for ids in (a, b))
    assert len(hashes_a) == len(a) // 4
    for n, (x, y) in enumerate(zip(hashes_a, hashes_b, strict=False), start=1):
        assert (x == y) == (a[: 4 * n] == b[: 4 * n])


def test_another_tenant_model_or_place_gives_another_hash() -> None:
    ids = [7] * 12
    hashes = [
        *prefix_hashes(ids, 4, KEY, "m"),
        *prefix_hashes(ids, 4, bytes(32), "m"),
        *prefix_hashes(ids, 4, KEY, "n"),
    ]
    assert all(x != y for x, y in itertools.combinations(hashes, 2))


def test_the_number_is_bounded_and_without_a_key_there_are_none() -> None:
    assert len(prefix_hashes([1] * 100_000, 4, KEY, "m")) == MAX_HASHES
    assert prefix_hashes([1] * 100, 4, b"", "m") == []
    assert prefix_hashes([1, 2, 3], 4, KEY, "m") == []
