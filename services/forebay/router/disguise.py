"""Characters of clients' texts in other characters, so that it shows what of a rendered prompt came from the clients.

Characters are replaced one by one, each by one that is nowhere else in the prompt, mostly from Unicode's private-use areas. White
space stays, so that a template trims as it would; and which characters are replaced is chosen, since templates also look at text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

# Private use first, then planes without characters: more than any prompt can have different ones.
_RANGES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0x40000, 0xE0000))


class Disguise:
    """A one-to-one replacement of characters, to be put on and taken off."""

    def __init__(self, texts: Iterable[str], prompt: str, hides: Callable[[str], bool]) -> None:
        """Chooses the replacements.

        Args:
            texts: what is to be disguised.
            prompt: where no replacement may occur by itself.
            hides: whether a character is replaced.
        """
        present = set[str]().union(*texts)
        free = _free(present | set(prompt))
        self._on = {ord(char): next(free) for char in sorted(present) if hides(char)}
        self._off = {ord(other): chr(char) for char, other in self._on.items()}

    def put_on(self, text: str) -> str:
        """Returns a text with its characters replaced."""
        return text.translate(self._on)

    def take_off(self, text: str) -> str:
        """Returns a text as it would be without the disguise."""
        return text.translate(self._off)


def _free(taken: set[str]) -> Iterator[str]:
    return (char for char in map(chr, chain(*_RANGES)) if char not in taken)
