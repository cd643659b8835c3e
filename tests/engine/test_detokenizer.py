"""Text from tokens, with byte-level tokens of which several make one character."""

from __future__ import annotations

import pytest

from forebay.worker import simulated_model
from forebay.worker.detokenizer import Detokenizer

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
