"""Text from the tokens of one stream, character by character.

Why not vLLM's own: a stream that continues elsewhere must go on within a character and within a stop string. vLLM primes its
decoder with all prompt tokens, and when these end in half a character the first text that it yields is the whole prompt,
system prompt included.

Why not `DecodeStream` of the library `tokenizers`: it decodes all tokens again that have come since the text last ended in
something other than U+FFFD. A text with many of these is held back, costs the square of its length, and may never come.

Bytes need no decoder of the tokenizer's. All tokens of a byte-level tokenizer (GPT-2, Llama 3, Qwen) are bytes, and so are some
of a tokenizer that falls back to them (Llama 2). An incremental UTF-8 decoder makes text of bytes, and at most three of them wait
for the rest of their character.

For other tokens the tokenizer decodes a window: the token and a few before it, because some tokenizers leave out the space at the
beginning of a text. If a decoder is of an unknown kind, up to three tokens whose text ends in U+FFFD wait as well.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import Tokenizer

# Tokens of the prompt, or of the answer before, by which a window tells that it is not at the beginning of a text.
_CONTEXT_TOKENS = 4
# With so many tokens before the new ones, the window begins later; so most tokens cost one decoding.
_MOST_CONTEXT_TOKENS = 12
# A character has at most four bytes, so the tokens of an incomplete one are at most three.
_MOST_WAITING = 3
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_FALLBACK_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


class Detokenizer:
    """The decoder of one stream; special tokens have no text."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], delivered_token_ids: Sequence[int]
    ) -> None:
        """Stands where the stream stood after the delivered tokens, within a character if need be."""
        kind = _kind(tokenizer)
        self._decoder: _Decoder
        if kind.tokens is not None:
            self._decoder = _ByteDecoder(kind.tokens)
            self.push(delivered_token_ids)
        else:
            # The window depends on the last tokens alone.
            cut = max(0, len(delivered_token_ids) - _CONTEXT_TOKENS - _MOST_WAITING)
            before = [*prompt_token_ids[-_CONTEXT_TOKENS:], *delivered_token_ids[max(0, cut - _CONTEXT_TOKENS) : cut]]
            self._decoder = _WindowDecoder(tokenizer, kind, before[-_CONTEXT_TOKENS:])
            self.push(delivered_token_ids[cut:])

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the characters that these tokens complete; what is left of the bytes waits for the next ones."""
        return "".join([self._decoder.push(token) for token in token_ids])

    def flush(self) -> str:
        """Ends the text; returns what waits, an incomplete character as U+FFFD."""
        return self._decoder.flush()


class _Decoder(Protocol):
    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class _TokenBytes:
    """The bytes of each token of a byte-level tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = _special(tokenizer)
        self._of: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        """Returns the bytes of a token; none for a special one, and for one that is not in the vocabulary."""
        known = self._of.get(token)
        if known is None:
            text = None if token in self._special else self._tokenizer.id_to_token(token)
            known = self._of[token] = _to_bytes(text or "")
        return known


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a tokenizer's tokens are.

    Attributes:
        tokens: of a byte-level tokenizer.
        special: tokens without text; not looked at for a byte-level tokenizer.
        fallback: the bytes of tokens that stand for one each.
        waits: whether another token may be a part of a character.
    """

    tokens: _TokenBytes | None
    special: frozenset[int]
    fallback: Mapping[int, int]
    waits: bool


class _ByteDecoder:
    """Decodes tokens that are bytes."""

    def __init__(self, tokens: _TokenBytes) -> None:
        self._of = tokens.of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._of(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDecoder:
    """Decodes a window: the tokens of the context, whose text is known, and those that wait for the rest of a character."""

    def __init__(self, tokenizer: Tokenizer, kind: _Kind, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = kind.special
        self._fallback = kind.fallback
        # As the tokenizer has it, each byte of a wrong sequence is a U+FFFD.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(_EACH_BYTE)
        # A byte in place of those that came, for it is whole.
        self._a_byte = next((token for token, byte in kind.fallback.items() if byte == ord("A")), None)
        self._waits = kind.waits
        self._waiting: list[int] = []
        self._context: list[int] = []
        for token in context:
            if token not in self._fallback:
                self._context.append(token)
            elif self._a_byte is not None:
                self._context = [self._a_byte]
        self._known = self._decode(self._context)

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        byte = self._fallback.get(token)
        if byte is not None:
            if self._a_byte is not None and self._context != [self._a_byte]:
                self._context, self._known = [self._a_byte], "A"
            return self._utf8.decode(bytes((byte,)))
        head = self._utf8.decode(b"", final=True)
        self._waiting.append(token)
        text, whole = self._text_of(self._waiting)
        if not (self._waits and text.endswith(_INCOMPLETE)):
            return head + self._settle(len(self._waiting), text, whole)
        if len(self._waiting) <= _MOST_WAITING:
            return head
        # The first of them is no part of the character that may be incomplete.
        return head + self._settle(1, *self._text_of(self._waiting[:1]))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        if self._waiting:
            text += self._settle(len(self._waiting), *self._text_of(self._waiting))
        return text

    def _text_of(self, tokens: list[int]) -> tuple[str, str]:
        """Returns the text of tokens after the context, and that of both."""
        whole = self._decode(self._context + tokens)
        if whole.startswith(self._known):
            return whole[len(self._known) :], whole
        # They change how those before them decode, whose text has left. So they count by themselves.
        return self._decode(tokens), whole

    def _settle(self, count: int, text: str, whole: str) -> str:
        """Makes waiting tokens part of the context; returns their text."""
        self._context += self._waiting[:count]
        del self._waiting[:count]
        if len(self._context) > _MOST_CONTEXT_TOKENS:
            del self._context[:-_CONTEXT_TOKENS]
            whole = self._decode(self._context)
        self._known = whole
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


_EACH_BYTE = "forebay-each-byte"
codecs.register_error(
    _EACH_BYTE,
    lambda error: (_INCOMPLETE * (error.end - error.start), error.end),  # type: ignore[attr-defined]
)

_WHOLE = {"Metaspace", "WordPiece", "BPEDecoder", "ByteFallback", "Replace", "Fuse", "Strip"}
"""Decoders in which no token but a fallback byte is a part of a character."""


@lru_cache(maxsize=4)
def _kind(tokenizer: Tokenizer) -> _Kind:
    """Returns what a tokenizer's tokens are, by its decoder."""
    special = _special(tokenizer)
    if tokenizer.decoder is None:
        return _Kind(None, special, {}, waits=False)
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    steps = {step["type"] for step in decoder.get("decoders", [decoder])}
    if steps == {"ByteLevel"}:
        return _Kind(_TokenBytes(tokenizer), special, {}, waits=False)
    fallback: dict[int, int] = {}
    if "ByteFallback" in steps:
        ids = {byte: tokenizer.token_to_id(name) for name, byte in _FALLBACK_BYTES.items()}
        fallback = {id: byte for byte, id in ids.items() if id is not None}
    return _Kind(None, special, fallback, waits=not steps <= _WHOLE)


def _special(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    """Returns the bytes that the characters of a byte-level token stand for.

    A byte that can be seen in Latin-1 stands for itself; the others are numbered from U+0100 on.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def _to_bytes(token: str) -> bytes:
    """Returns the bytes of a token; an added one is written as it is, with characters of which not all stand for bytes."""
    table = _byte_table()
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()
