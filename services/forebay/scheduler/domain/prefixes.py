"""Which prompt prefixes a worker's cache is likely to hold.

An estimate from what was granted to the worker: the engine does not tell. Hashes are keyed per tenant, so that equal prompts
of two tenants never meet here, as they never do in the engine's salted cache. The least recently granted are forgotten
when the cache could not hold them any more.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Prefixes:
    """The blocks of one worker, least recently granted first."""

    def __init__(self, most_blocks: int) -> None:
        self._most = most_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit_blocks(self, hashes: Sequence[int]) -> int:
        """Returns how many leading blocks of a prompt are there."""
        blocks = self._blocks
        count = 0
        for block in hashes:
            if block not in blocks:
                break
            count += 1
        return count

    def granted(self, hashes: Sequence[int]) -> None:
        """Notes that a prompt with these blocks will be computed here; its first block is the last to be forgotten."""
        for block in reversed(hashes):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
