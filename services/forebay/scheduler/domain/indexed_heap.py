"""A binary heap whose items can be found, moved and removed.

Textbook heap (Williams 1964) with a table of positions. `heapq` with lazily dropped entries was rejected: counters move with
every generated token, so stale entries would outnumber live ones.
"""

import heapq
from collections.abc import Iterator
from typing import Any, Generic, Protocol, Self, TypeVar


class Ordered(Protocol):
    """Anything that `<` compares with its own kind."""

    def __lt__(self, other: Any, /) -> bool: ...


Item = TypeVar("Item")
Rank = TypeVar("Rank", bound=Ordered)


class IndexedHeap(Generic[Item, Rank]):
    """A set of hashable items, the one of least rank first. Each operation takes O(log n), looking takes O(1)."""

    __slots__ = ("_entries", "_position")

    def __init__(self) -> None:
        self._entries: list[tuple[Rank, Item]] = []
        self._position: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._position

    def __iter__(self) -> Iterator[tuple[Rank, Item]]:
        """Yields ranks and items in no order."""
        return iter(self._entries)

    def first(self) -> tuple[Rank, Item] | None:
        """Returns the least rank and its item, or None when the heap is empty."""
        return self._entries[0] if self._entries else None

    def ascending(self) -> Iterator[tuple[Rank, Item]]:
        """Yields ranks and items, the least first; the k-th takes O(log k). The heap must not change meanwhile."""
        entries = self._entries
        frontier: list[tuple[Rank, int]] = [(entries[0][0], 0)] if entries else []
        while frontier:
            _, position = heapq.heappop(frontier)
            yield entries[position]
            for child in (2 * position + 1, 2 * position + 2):
                if child < len(entries):
                    heapq.heappush(frontier, (entries[child][0], child))

    def put(self, item: Item, rank: Rank) -> Self:
        """Adds the item, or moves it to a new rank."""
        position = self._position.get(item)
        if position is None:
            position = len(self._entries)
            self._entries.append((rank, item))
        self._settle(position, (rank, item))
        return self

    def move(self, item: Item, rank: Rank) -> None:
        """Moves the item to a new rank if it is there."""
        position = self._position.get(item)
        if position is not None:
            self._settle(position, (rank, item))

    def discard(self, item: Item) -> None:
        """Removes the item if it is there."""
        position = self._position.pop(item, None)
        if position is None:
            return
        last = self._entries.pop()
        if position < len(self._entries):
            self._settle(position, last)

    def _settle(self, position: int, entry: tuple[Rank, Item]) -> None:
        """Writes the entry at the position, or where the order wants it above or below."""
        entries, positions, rank = self._entries, self._position, entry[0]
        while position > 0:
            parent = (position - 1) // 2
            above = entries[parent]
            if not rank < above[0]:
                break
            entries[position] = above
            positions[above[1]] = position
            position = parent
        size = len(entries)
        while (child := 2 * position + 1) < size:
            below = entries[child]
            if child + 1 < size and entries[child + 1][0] < below[0]:
                child += 1
                below = entries[child]
            if not below[0] < rank:
                break
            entries[position] = below
            positions[below[1]] = position
            position = child
        entries[position] = entry
        positions[entry[1]] = position
