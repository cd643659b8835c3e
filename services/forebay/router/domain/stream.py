"""The tokens of one answer between the engine and the client: each in its place, each passed on once.

The engine appends, the client's writer takes; neither waits for the other. Whatever was appended between two takes leaves as one
piece, so a client that keeps up gets a token per message and one that does not gets more per message.

`append` runs once for every delta of every stream and is written for speed: it makes no object.
"""

from __future__ import annotations

from collections.abc import Sequence

Piece = tuple[int, list[int], str]


class TokenStream:
    """One answer as far as it is known.

    Attributes:
        limit: the most tokens it may have; bounds the memory.
        token_ids: all tokens received, in order, those of earlier attempts included.
        sent: how many of them have been taken.
        held_text: text of received tokens that the engine still holds back: half a character or the beginning of a stop string.
    """

    __slots__ = ("_text", "held_text", "limit", "sent", "token_ids")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.token_ids: list[int] = []
        self.sent = 0
        self.held_text = ""
        self._text: list[str] = []

    @property
    def received(self) -> int:
        """How many tokens have come."""
        return len(self.token_ids)

    @property
    def pending(self) -> bool:
        """Whether there is something to take."""
        return self.sent < len(self.token_ids) or bool(self._text)

    def append(self, token_ids: Sequence[int], text: str, held_text: str, completion_tokens: int) -> bool:
        """Adds what the engine yielded.

        Args:
            token_ids: new tokens, in order; may be empty.
            text: text to pass on now; may be empty.
            held_text: text held back after this.
            completion_tokens: the position after the last of these tokens, as the worker counts.

        Returns:
            False, having changed nothing, when the tokens do not follow on those before (a gap or a repeat) or exceed `limit`.
        """
        known = self.token_ids
        if len(known) + len(token_ids) != completion_tokens or completion_tokens > self.limit:
            return False
        known.extend(token_ids)
        if text:
            self._text.append(text)
        self.held_text = held_text
        return True

    def take(self) -> Piece:
        """Returns what has not been passed on yet: the position of its first token, the tokens, and their text."""
        position = self.sent
        tokens = self.token_ids[position:]
        self.sent = len(self.token_ids)
        text = "".join(self._text)
        self._text.clear()
        return position, tokens, text
