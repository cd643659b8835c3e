"""The KV cache's counting and its prefix cache."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker.domain.block_cache import BlockCache, prefix_keys


def test_keys_stand_for_salt_and_all_tokens_before() -> None:
    keys = prefix_keys("salt", [1, 2, 3, 4, 5], 2)
    assert len(keys) == 2
    assert prefix_keys("salt", [1, 2, 3, 4], 2) == keys
    assert prefix_keys("salt", [1, 2, 9, 4], 2)[0] == keys[0]
    assert prefix_keys("salt", [9, 2, 3, 4], 2)[1] != keys[1]
    assert not set(prefix_keys("other", [1, 2, 3, 4], 2)) & set(keys)


def test_taking_is_all_or_nothing() -> None:
    cache = BlockCache(4)
    assert cache.take((), 3)
    assert not cache.take((), 2)
    assert cache.used == 3
    assert cache.take((), 1)
    cache.release((), 4)
    assert cache.used == 0


def test_shared_blocks_are_counted_once_and_stay_when_idle() -> None:
    cache = BlockCache(4)
    assert cache.take((), 2)
    assert cache.share([1, 2]) == [1, 2]
    assert cache.share([1]) == []  # another one computed the same; it keeps its own copy
    assert cache.take([1, 2], 1)
    assert cache.used == 3
    cache.release([1, 2], 1)
    cache.release([1, 2], 0)
    assert cache.used == 0
    assert cache.match([1, 2, 3]) == 2


def test_the_longest_prefix_of_the_longest_unused_goes_first() -> None:
    cache = BlockCache(4)
    for keys in ([1, 2], [3, 4]):
        assert cache.take((), 2)
        cache.share(keys)
        cache.release(keys, 0)
    assert cache.take((), 1)
    assert cache.match([1, 2]) == 1
    assert cache.match([3, 4]) == 2
    assert cache.take((), 2)
    assert cache.match([1]) == 0
    assert cache.match([3, 4]) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3)), max_size=40))
def test_it_never_holds_more_than_there_is(moves: list[tuple[int, int, int]]) -> None:
    cache = BlockCache(8)
    users: list[tuple[list[int], int]] = []
    for salt, length, private in moves:
        keys = [salt * 10 + n for n in range(length)]
        hits = cache.match(keys)
        if cache.take(keys[:hits], length - hits + private):
            fresh = cache.share(keys)
            users.append((keys[:hits] + fresh, length - hits + private - len(fresh)))
        elif users:
            cache.release(*users.pop(0))
        assert cache.used == sum(p for _, p in users) + len({key for held, _ in users for key in held})
        assert cache.used <= 8
