"""Draws pleasant words, deterministically: token i is a function of the seed and of all tokens before it.

The prefix is kept as one rolling hash, so a token costs constant time, and whoever hashes prompt + delivered tokens stands
where the stream stood. It has 60 bits, with which Python counts twice as fast as with 64. Which words may follow is a table
for the kind of the last token; the hash's upper bits choose in it.
"""

from collections.abc import Sequence

_MASK = (1 << 60) - 1
_MULTIPLIER = 0x9E3779B97F4A7C5  # 2^60 over the golden ratio, made odd: spreads a small difference to the upper bits
ROW_LENGTH = 256  # the upper eight bits choose


class WordChain:
    """A chain over token ids.

    `kinds[token]` is the row that follows a token; `rows[kind]` holds ROW_LENGTH tokens. `unending` are the same rows with
    the end token replaced.
    """

    __slots__ = ("_end", "_kinds", "_rows", "_unending")

    def __init__(
        self,
        kinds: Sequence[int],
        rows: Sequence[Sequence[int]],
        unending: Sequence[Sequence[int]],
        end: int,
    ) -> None:
        self._kinds = kinds
        self._rows = rows
        self._unending = unending
        self._end = end

    def start(self, seed: int, token_ids: Sequence[int]) -> int:
        """Returns the hash of a seed and a prefix."""
        state = ((seed + 1) * _MULTIPLIER) & _MASK
        for token in token_ids:
            state = ((state + token + 1) * _MULTIPLIER) & _MASK
        return state

    def draw(self, state: int, last: int, count: int, *, may_end: bool) -> tuple[int, list[int]]:
        """Returns the new hash and up to `count` tokens; fewer when the last of them is the end token."""
        kinds, end = self._kinds, self._end
        rows = self._rows if may_end else self._unending
        token_ids = []
        for _ in range(count):
            last = rows[kinds[last]][state >> 52]
            state = ((state + last + 1) * _MULTIPLIER) & _MASK
            token_ids.append(last)
            if last == end:
                break
        return state, token_ids
