"""The tokens of one answer between the engine and the client: each in its place, each passed on once.

The engine appends, the client's writer takes; neither waits for the other. What was appended between two takes leaves as one
piece, up to a bound that no client's largest message is near, so a client that keeps up gets a token per message and one that
does not gets more per message.

`append` runs once for every delta of every stream and is written for speed: it makes no object.
"""

from __future__ import annotations

from collections.abc import Sequence

Piece = tuple[int, list[int], str]

MOST_APPENDED_IN_A_PIECE = 4096


class TokenStream:
    """One answer as far as it is known.

    Attributes:
        limit: the most tokens it may have; bounds the memory.
        token_ids: all tokens received, in order, those of earlier attempts included.
        sent: how many of them have been taken.
        held_text: text of received tokens that the engine still holds back, the beginning of a stop string.
    """

    __slots__ = ("_ends", "_texts", "held_text", "limit", "sent", "token_ids")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.token_ids: list[int] = []
        self.sent = 0
        self.held_text = ""
        # What was appended and not taken: each time the position after its last token, and its text.
        self._ends: list[int] = []
        self._texts: list[str] = []

    @property
    def received(self) -> int:
        """How many tokens have come."""
        return len(self.token_ids)

    @property
    def pending(self) -> bool:
        """Whether there is something to take."""
        return bool(self._ends)

    def shorten(self, limit: int) -> None:
        """Lowers the limit to `limit` if it is above that."""
        self.limit = min(self.limit, limit)

    def append(self, token_ids: Sequence[int], text: str, held_text: str, completion_tokens: int) -> bool:
        """Adds what the engine yielded.

        Args:
            token_ids: new tokens, in order; may be empty.
            text: text to pass on now; may be empty.
            held_text: text held back after this; what was held stays so when there are neither tokens nor text.
            completion_tokens: the position after the last of these tokens, as the worker counts.

        Returns:
            False, having changed nothing, when the tokens do not follow on those before (a gap or a repeat) or exceed `limit`.
        """
        known = self.token_ids
        if len(known) + len(token_ids) != completion_tokens or completion_tokens > self.limit:
            return False
        if token_ids or text:
            known.extend(token_ids)
            self._ends.append(completion_tokens)
            self._texts.append(text)
            self.held_text = held_text
        return True

    def release(self) -> bool:
        """Adds the text that was held back, for nothing more comes; returns whether there was any."""
        held, self.held_text = self.held_text, ""
        if held:
            self._ends.append(self.received)
            self._texts.append(held)
        return bool(held)

    def take(self) -> Piece:
        """Returns the next piece: the position of its first token, the tokens, and their text. Something must be `pending`."""
        position, texts = self.sent, self._texts[:MOST_APPENDED_IN_A_PIECE]
        self.sent = self._ends[len(texts) - 1]
        del self._ends[: len(texts)], self._texts[: len(texts)]
        return position, self.token_ids[position : self.sent], "".join(texts)
