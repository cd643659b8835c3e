"""A binary heap whose items can be found, moved and removed.

Textbook heap (Williams 1964) with a table of positions. `heapq` with lazily dropped entries was rejected: counters move with
every generated token, so stale entries would outnumber live ones.
"""

from typing import Any, Generic, Protocol, Self, TypeVar


class Ordered(Protocol):
    """Anything that `<` compares with its own kind."""

    def __lt__(self, other: Any, /) -> bool: ...


Item = TypeVar("Item")
Rank = TypeVar("Rank", bound=Ordered)


class IndexedHeap(Generic[Item, Rank]):
    """A set of hashable items, the one of least rank first. Each operation takes O(log n), looking takes O(1)."""

    def __init__(self) -> None:
        self._entries: list[tuple[Rank, Item]] = []
        self._position: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._position

    def first(self) -> tuple[Rank, Item] | None:
        """Returns the least rank and its item, or None when the heap is empty."""
        return self._entries[0] if self._entries else None

    def put(self, item: Item, rank: Rank) -> Self:
        """Adds the item, or moves it to a new rank."""
        position = self._position.get(item)
        if position is None:
            position = len(self._entries)
            self._entries.append((rank, item))
        self._settle(position, (rank, item))
        return self

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
        while position > 0:
            parent = (position - 1) // 2
            if not entry[0] < self._entries[parent][0]:
                break
            self._write(position, self._entries[parent])
            position = parent
        while (child := 2 * position + 1) < len(self._entries):
            if child + 1 < len(self._entries) and self._entries[child + 1][0] < self._entries[child][0]:
                child += 1
            if not self._entries[child][0] < entry[0]:
                break
            self._write(position, self._entries[child])
            position = child
        self._write(position, entry)

    def _write(self, position: int, entry: tuple[Rank, Item]) -> None:
        self._entries[position] = entry
        self._position[entry[1]] = position
