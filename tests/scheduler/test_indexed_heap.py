"""The heap against a dictionary that is sorted anew each time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain.indexed_heap import IndexedHeap

operations = st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(0, 50)), max_size=60)


@settings(max_examples=40)
@given(operations)
def test_the_least_rank_is_first_whatever_was_put_moved_and_discarded(steps: list[tuple[int, int | None]]) -> None:
    heap: IndexedHeap[int, tuple[int, int]] = IndexedHeap()
    model: dict[int, tuple[int, int]] = {}
    for item, rank in steps:
        if rank is None:
            heap.discard(item)
            model.pop(item, None)
        else:
            heap.put(item, (rank, item))
            model[item] = (rank, item)
        assert len(heap) == len(model)
        assert (item in heap) == (item in model)
        assert heap.first() == min(((rank, item) for item, rank in model.items()), default=None)
    drained = []
    while (first := heap.first()) is not None:
        drained.append(first[1])
        heap.discard(first[1])
    assert drained == sorted(model, key=model.__getitem__)
