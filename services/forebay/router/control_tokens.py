"""The control tokens of a tokenizer: where it sees them in a text, and how a text is encoded without them.

A tokenizer file lists *added tokens*, such as `<|im_start|>` and `<tool_call>`. The tokenizer looks for their literals in every
text first, before and after it normalises the text. All of them count as control tokens here, also those that the file does not
mark as `special`. There are two exceptions, neither of which controls anything: tokens of white space alone, which models use for
indentation, and single characters that the model's own vocabulary has.

Two more tokenizers are made from the file.

- The *finder* has the same normaliser and added tokens, and takes all text between two of them for one word. It says where the
  tokenizer sees control tokens, by the tokenizer's own rules (normalisation, longest match, `lstrip`, `single_word`).
- The *plain* tokenizer has a secret name for each control token instead of its literal. The router writes a genuine control token
  by its secret name; a literal is text. The entries of the same names in the model's own vocabulary have the secret names, too,
  because some models (Unigram) yield such an entry for its literal. Without such entries both tokenizers share the model.

The plain tokenizer always encodes a whole prompt. To encode a prompt in pieces would change merges, and the marks that some
tokenizers put at the beginning of a text.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import tokenizers
from tokenizers.models import WordLevel

_SECRET_CHARACTERS = 12
_NUMBER_BASE = 256
# Whose characters a secret is made of: private use, and where a normaliser removes that, letters of dead languages.
_ALPHABETS = (0xE000, 0xF0000, 0x12000, 0x13000)
# From this size on it pays to use the call that computes no offsets, which has a fixed cost of its own.
_LONG = 4_096
# Marks that a template may escape (`tojson`), so that they are no sign of a control token while there are others.
_ESCAPED = frozenset("\"'\\")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token in a text, in characters; `token` is its id."""

    token: int
    start: int
    end: int


class ControlTokens:
    """The control tokens of one tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Derives the finder and the plain tokenizer; takes as long as loading the tokenizer when the model has to be changed."""
        added = tokenizer.get_added_tokens_decoder()
        words = tokenizer.get_vocab(with_added_tokens=False)
        self._literals = {id: token.content for id, token in added.items() if _controls(token, words)}
        self._normaliser = tokenizer.normalizer
        self._finder = _finder(tokenizer, added.values())
        self._found = {self._finder.token_to_id(literal): id for id, literal in self._literals.items()}
        self._any_literal = re.compile(_alternatives(self._literals.values())) if self._literals else None
        # In each control token is a mark.
        self._marks = frozenset().union(*map(_marks, self._literals.values()))
        self._secrets, self._plain = _plain(tokenizer, self._literals, words)
        self.is_mark = lru_cache(maxsize=4096)(self._is_mark)

    def among(self, ids: Sequence[int]) -> list[int]:
        """Returns those of some ids that are control tokens, in order."""
        literals = self._literals
        return [id for id in ids if id in literals]

    def literal_in(self, text: str) -> bool:
        """Whether a text has the literal of a control token, written out as in the file."""
        return self._any_literal is not None and self._any_literal.search(text) is not None

    def find(self, text: str) -> list[Control]:
        """Returns the control tokens that the tokenizer would see in a text, in order."""
        encoding = self._finder.encode(text, add_special_tokens=False)
        found = self._found
        return [
            self._control(found[id], text, *span)
            for id, span in zip(encoding.ids, encoding.offsets, strict=True)
            if id in found
        ]

    def encode(self, text: str, controls: Iterable[Control] = (), *, add_special_tokens: bool) -> list[int]:
        """Returns the ids of a text in which only `controls`, of those that `find` returns for it, are control tokens."""
        parts: list[str] = []
        last = 0
        for control in controls:
            parts += text[last : control.start], self._secrets[control.token]
            last = control.end
        parts.append(text[last:])
        return encoded(self._plain, "".join(parts), add_special_tokens=add_special_tokens)

    def _control(self, token: int, text: str, start: int, end: int) -> Control:
        """Returns a control token without the white space that some take in."""
        span, literal = text[start:end], self._literals[token]
        if (at := span.find(literal)) < 0:  # the normaliser has made it
            literal = span.strip() or span
            at = span.find(literal)
        return Control(token, start + at, start + at + len(literal))

    def _is_mark(self, char: str) -> bool:
        """Whether a character is a mark, or becomes one by normalisation or by a change of case."""
        marks = self._marks
        if char in marks:
            return True
        variants = {char.casefold(), char.lower(), char.upper()}
        variants |= {unicodedata.normalize("NFKC", char), unicodedata.normalize("NFKD", char)}
        if self._normaliser is not None:
            variants.add(self._normaliser.normalize_str(char))
        return any(not marks.isdisjoint(variant) for variant in variants)


def encoded(tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Returns the ids of a text."""
    if len(text) < _LONG:
        encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    else:
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = encoding.ids
    return ids


def _controls(token: tokenizers.AddedToken, words: Mapping[str, int]) -> bool:
    if token.special:
        return True
    if len(token.content) == 1 and token.content in words:
        return False  # it is how the model spells the character
    return bool(token.content.replace("\N{LOWER ONE EIGHTH BLOCK}", "").strip())


def _marks(literal: str) -> set[str]:
    """Returns characters of a literal, rare in text, that have to be hidden so that a text cannot make it."""
    rare = {char for char in literal if not (char.isalnum() or char.isspace() or char in _ESCAPED)}
    return rare or {literal.strip()[:1] or literal[0]}


def _finder(tokenizer: tokenizers.Tokenizer, added: Iterable[tokenizers.AddedToken]) -> tokenizers.Tokenizer:
    unknown = secrets.token_hex()
    finder = tokenizers.Tokenizer(WordLevel({unknown: 0}, unk_token=unknown))
    if tokenizer.normalizer is not None:
        finder.normalizer = tokenizer.normalizer
    added = list(added)
    finder.add_special_tokens([token for token in added if token.special])
    finder.add_tokens([token for token in added if not token.special])
    return finder


def _plain(
    tokenizer: tokenizers.Tokenizer, literals: dict[int, str], words: Mapping[str, int]
) -> tuple[dict[int, str], tokenizers.Tokenizer]:
    """Returns the secret names of the control tokens, and the tokenizer that knows them by no others."""
    if not any(literal in words for literal in literals.values()):
        names = _names(literals, _ALPHABETS[0])
        shared = _sharing(tokenizer, names)
        if all(shared.token_to_id(name) == id for id, name in names.items()) and _agree(
            tokenizer, shared, literals, names
        ):
            return names, shared
    file = tokenizer.to_str()
    for first in _ALPHABETS:
        names = _names(literals, first)
        plain = _renamed(file, literals, names)
        if _agree(tokenizer, plain, literals, names):
            return names, plain
    # The normaliser changes every alphabet, so the secrets are looked for before it has its turn.
    names = _names(literals, _ALPHABETS[0])
    return names, _renamed(file, literals, names, normalized=False)


def _names(literals: Iterable[int], first: int) -> dict[int, str]:
    secret = "".join(chr(first + secrets.randbelow(_NUMBER_BASE)) for _ in range(_SECRET_CHARACTERS))
    names = {}
    for number, id in enumerate(literals):
        high, low = divmod(number, _NUMBER_BASE)
        higher, high = divmod(high, _NUMBER_BASE)
        names[id] = secret + chr(first + higher) + chr(first + high) + chr(first + low)
    return names


def _sharing(tokenizer: tokenizers.Tokenizer, names: dict[int, str]) -> tokenizers.Tokenizer:
    """Returns the tokenizer with other names for its control tokens, and the same model; their ids may have changed."""
    plain = tokenizers.Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if (used := getattr(tokenizer, part)) is not None:
            setattr(plain, part, used)
    renamed = [
        tokenizers.AddedToken(
            names.get(id, token.content),
            # Whether a control token stands alone has been looked at when it was found.
            single_word=token.single_word and id not in names,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        for id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    ]
    # In the order of their ids, by which they get the same ones.
    for special, tokens in groupby(renamed, key=lambda token: bool(token.special)):
        (plain.add_special_tokens if special else plain.add_tokens)(list(tokens))
    return plain


def _renamed(
    file: str, literals: dict[int, str], names: dict[int, str], normalized: bool | None = None
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a file with other names for its control tokens, also within its model."""
    content: dict[str, Any] = json.loads(file)
    renamed = {literal: names[id] for id, literal in literals.items()}
    for token in content["added_tokens"]:
        if token["content"] in renamed:
            # Whether it stands alone has been looked at when it was found.
            token.update(content=renamed[token["content"]], single_word=False)
            if normalized is not None:
                token["normalized"] = normalized
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(word, word): id for word, id in vocabulary.items()}
    else:
        model["vocab"] = [[renamed.get(word, word), score] for word, score in vocabulary]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [pair for pair in model["merges"] if not _concerns(pair, renamed)]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _concerns(pair: str | list[str], renamed: dict[str, str]) -> bool:
    """Whether a merge makes or takes a token that has another name now."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return left + right in renamed or left in renamed or right in renamed


def _agree(
    tokenizer: tokenizers.Tokenizer, plain: tokenizers.Tokenizer, literals: dict[int, str], names: dict[int, str]
) -> bool:
    """Whether the plain tokenizer reads secret names as the other one reads literals."""
    theirs = tokenizer.encode_batch([f"a {literal} b" for literal in literals.values()], add_special_tokens=False)
    ours = plain.encode_batch([f"a {names[id]} b" for id in literals], add_special_tokens=False)
    return all(
        id not in expected.ids or got.ids == expected.ids
        for id, expected, got in zip(literals, theirs, ours, strict=True)
    )


def _alternatives(literals: Iterable[str]) -> str:
    """Returns a pattern for any of some literals, in which common beginnings are looked at once."""
    by_first: dict[str, list[str]] = {}
    for literal in literals:
        by_first.setdefault(literal[:1], []).append(literal[1:])
    if "" in by_first:
        return ""  # one of them ends here, and which one is found does not matter
    return f"(?:{'|'.join(re.escape(first) + _alternatives(rest) for first, rest in by_first.items())})"
