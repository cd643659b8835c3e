"""A KV cache counted in blocks, with the prefix cache that lives in it.

A block is private to one sequence, or shared: named by a key that stands for all tokens up to its end and for the salt.
Shared blocks that nobody uses stay, least recently used first to go, until their room is needed. This is vLLM's scheme
without the memory: only numbers and keys are kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile


def prefix_keys(salt: str, token_ids: Sequence[int], block_tokens: int) -> list[int]:
    """Returns a key for each full block; equal keys mean equal salt and equal tokens up to the block's end."""
    keys: list[int] = []
    key = hash(salt)
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        key = hash((key, *token_ids[end - block_tokens : end]))
        keys.append(key)
    return keys


class BlockCache:
    """Counts `blocks` blocks; every method is all or nothing."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._private = 0
        self._users: dict[int, int] = {}  # shared blocks in use: key to number of sequences
        self._idle: OrderedDict[int, None] = OrderedDict()  # shared blocks that nobody uses, oldest first

    @property
    def used(self) -> int:
        """Blocks that sequences use; idle ones count as free."""
        return self._private + len(self._users)

    def match(self, keys: Sequence[int]) -> int:
        """Returns how many of the first keys are cached, in a row."""
        return sum(1 for _ in takewhile(lambda key: key in self._users or key in self._idle, keys))

    def take(self, keys: Sequence[int], private: int) -> bool:
        """Uses cached blocks by key and `private` new ones; returns False, and takes none, when there is no room."""
        woken = sum(1 for key in keys if key not in self._users)
        if self.used + woken + private > self._blocks:
            return False
        for key in keys:
            self._idle.pop(key, None)
            self._users[key] = self._users.get(key, 0) + 1
        self._private += private
        self._evict()
        return True

    def share(self, keys: Sequence[int]) -> list[int]:
        """Turns one private block into a shared one for each key not cached yet; returns these keys."""
        fresh = [key for key in keys if key not in self._users and key not in self._idle]
        for key in fresh:
            self._users[key] = 1
        self._private -= len(fresh)
        return fresh

    def release(self, keys: Sequence[int], private: int) -> None:
        """Gives back what one sequence used; its longest prefixes are the first to be evicted."""
        self._private -= private
        for key in reversed(keys):
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self._idle[key] = None
        self._evict()

    def _evict(self) -> None:
        while self.used + len(self._idle) > self._blocks:
            self._idle.popitem(last=False)
