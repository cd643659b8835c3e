"""Text from tokens, with byte-level tokens of which several make one character."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker import simulated_model
from forebay.worker.detokenizer import Detokenizer

from .kinds import KINDS, Counting

TOKENIZER = simulated_model.tokenizer()
PROMPT = TOKENIZER.encode("<|system|>A secret.<|end|><|user|>Hi<|end|><|assistant|>").ids
ANSWER = TOKENIZER.encode("The mühle 🙂 turns. 水").ids


def test_characters_come_when_they_are_complete() -> None:
    detokenizer = Detokenizer(TOKENIZER, PROMPT, [])
    pieces = [detokenizer.push([token]) for token in ANSWER]
    assert "".join(pieces) == "The mühle 🙂 turns. 水"
    assert pieces.count("") == 6  # 1 of 2 bytes, 3 of 4, 2 of 3 wait
    assert Detokenizer(TOKENIZER, PROMPT, []).push(ANSWER) == "".join(pieces)
    assert detokenizer.push([simulated_model.END]) == ""


@pytest.mark.parametrize("cut", range(len(ANSWER) + 1))
def test_a_stream_continues_within_a_character(cut: int) -> None:
    before = Detokenizer(TOKENIZER, PROMPT, []).push(ANSWER[:cut])
    after = Detokenizer(TOKENIZER, PROMPT, ANSWER[:cut]).push(ANSWER[cut:])
    assert before + after == "The mühle 🙂 turns. 水"


@pytest.mark.parametrize("ending", ["\N{REPLACEMENT CHARACTER}", "🙂"])
def test_a_prompt_that_ends_within_a_character_is_not_repeated(ending: str) -> None:
    prompt = PROMPT + TOKENIZER.encode(ending).ids[: -1 if ending == "🙂" else None]
    detokenizer = Detokenizer(TOKENIZER, prompt, [])
    text = "".join(detokenizer.push([token]) for token in TOKENIZER.encode(" turns").ids)
    assert text == " turns"


def test_bytes_that_are_no_text_do_not_stop_the_stream() -> None:
    emoji = TOKENIZER.encode("🙂").ids
    detokenizer = Detokenizer(TOKENIZER, PROMPT, [])
    text = "".join(detokenizer.push([token]) for token in [*emoji[:2], *emoji[:3], *TOKENIZER.encode(" turns").ids])
    assert text.endswith(" turns")


# Any tokenizer, any tokens.

ODD = "\N{REPLACEMENT CHARACTER}"
BOUND = 64
"""Far fewer tokens than an answer has; more than any tokenizer may be asked to decode for one more token."""


@cache
def tokenizer_of(kind: str) -> Any:
    return KINDS[kind]()


def said(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join([detokenizer.push([token]) for token in ids]) + detokenizer.flush()


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Tokens whose text is the sum of what they are: any, but for bytes that are no UTF-8 where these change others."""
    tokenizer = tokenizer_of(kind)
    if kind in ("byte fallback", "unknown"):
        texts = st.text(st.sampled_from(f"ab. é狐🙂{ODD}\ue000"), max_size=12) | st.text(max_size=6)
        return texts.map(lambda text: list(tokenizer.encode(text).ids))
    return st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=24)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_the_text_of_all_tokens(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=60, deadline=None)
    @given(ids=ids_of(kind), cut=st.integers(0, 24))
    def holds(ids: list[int], cut: int) -> None:
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert said(Detokenizer(tokenizer, [], []), ids) == expected
        before = Detokenizer(tokenizer, [], []).push(ids[:cut])
        assert before + said(Detokenizer(tokenizer, [], ids[:cut]), ids[cut:]) == expected

    holds()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["text", "odd characters", "halves of characters", "anything"])
def test_the_work_for_a_token_does_not_grow_with_the_answer(kind: str, what: str) -> None:
    tokenizer = Counting(tokenizer_of(kind))
    choose = random.Random(3)
    pieces = {
        "text": tokenizer.encode("the fox. ").ids,
        "odd characters": tokenizer.encode(ODD).ids,
        "halves of characters": [tokenizer.token_to_id("<0xF0>") or tokenizer.token_to_id("ð") or 1],
        "anything": [choose.randrange(tokenizer.get_vocab_size()) for _ in range(997)],
    }
    ids = (pieces[what] * 2_000)[:2_000]
    detokenizer = Detokenizer(tokenizer, [], [])
    tokenizer.take()
    for token in ids:
        detokenizer.push([token])
        assert tokenizer.take() <= BOUND
    detokenizer.flush()
    assert tokenizer.take() <= BOUND
    Detokenizer(tokenizer, ids, ids)
    assert tokenizer.take() <= 4 * BOUND


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "unknown"])
def test_odd_characters_come_soon_and_at_the_end(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(ODD * 2_000).ids
    detokenizer = Detokenizer(tokenizer, [], [])
    characters = 0
    for number, token in enumerate(ids, start=1):
        characters += len(detokenizer.push([token]))
        assert characters >= number * 2_000 // len(ids) - 3
    assert characters + len(detokenizer.flush()) == 2_000


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "unknown"])
def test_half_a_character_at_the_end_is_flushed(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("a 🙂").ids[:-1]
    detokenizer = Detokenizer(tokenizer, [], [])
    assert "".join(detokenizer.push([token]) for token in ids).strip() == "a"
    assert set(detokenizer.flush()) == {ODD}
    assert detokenizer.flush() == ""
