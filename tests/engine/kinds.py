"""Tokenizers of the kinds whose decoders differ, and one that counts what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from forebay.worker import simulated_model

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'"


def byte_level() -> Tokenizer:
    """The simulated model's, with a token that is added and not special."""
    tokenizer = simulated_model.tokenizer()
    tokenizer.add_tokens([AddedToken("<tööl>", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As of Llama 2: what has no token of its own is bytes, and a text begins without its space."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    tokenizer = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def unknown() -> Tokenizer:
    """With a decoder of which nothing is known: bytes, and something after it."""
    tokenizer = simulated_model.tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return tokenizer


def words(decoder: Any, pre_tokenizer: Any, vocabulary: Sequence[str]) -> Tokenizer:
    """Whole words, and U+FFFD as one."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([vocabulary[0]])
    return tokenizer


def metaspace() -> Tokenizer:
    """As of T5."""
    vocabulary = ["<unk>", "▁the", "▁fox", "es", "▁", ".", "\N{REPLACEMENT CHARACTER}", "▁\N{REPLACEMENT CHARACTER}"]
    return words(decoders.Metaspace(), pre_tokenizers.Metaspace(), vocabulary)


def word_piece() -> Tokenizer:
    """As of BERT."""
    vocabulary = ["[UNK]", "the", "fox", "##es", ".", "##.", "\N{REPLACEMENT CHARACTER}", "do", "n't"]
    return words(decoders.WordPiece(), pre_tokenizers.Whitespace(), vocabulary)


def bare() -> Tokenizer:
    """Without a decoder."""
    return words(None, pre_tokenizers.Whitespace(), ["[UNK]", "the", "fox", "\N{REPLACEMENT CHARACTER}"])


KINDS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "unknown": unknown,
    "metaspace": metaspace,
    "word piece": word_piece,
    "bare": bare,
}


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def id_to_token(self, id: int) -> str | None:
        self.decoded += 1
        return self.tokenizer.id_to_token(id)  # type: ignore[no-any-return]

    def take(self) -> int:
        decoded, self.decoded = self.decoded, 0
        return decoded
