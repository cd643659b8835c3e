"""The simulated model: its tokenizer, its files, its speech."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from forebay.worker import simulated_model

TOKENIZER = simulated_model.tokenizer()


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert all(token < simulated_model.VOCABULARY_TOKENS for token in ids)
    if not any(mark in text for mark in ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")):
        assert TOKENIZER.decode(ids) == text


def test_what_it_speaks_is_one_token_a_word_and_reads_back_so() -> None:
    chain = simulated_model.word_chain()
    _, token_ids = chain.draw(chain.start(7, []), simulated_model.END, 2_000, may_end=False)
    text = "".join(simulated_model.TEXT[token] for token in token_ids)
    assert TOKENIZER.encode(text).ids == token_ids
    assert len(text.split()) > 1_600
    assert text.startswith(("The ", "Our ", "Every ", "This ", "One ", "Each "))
    assert 100 < text.count(". ") < 400


def test_the_vocabulary_is_small_and_common_words_are_in_it() -> None:
    assert simulated_model.VOCABULARY_TOKENS <= 4_096
    assert TOKENIZER.encode("What is the capital of France?").tokens == [
        "What", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "?"
    ]  # fmt: skip


def test_the_directory_is_like_a_real_models(tmp_path: Path) -> None:
    simulated_model.build(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == TOKENIZER.to_str()
    config = json.loads((tmp_path / "config.json").read_text())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["max_position_embeddings"] == settings["model_max_length"]
    assert TOKENIZER.token_to_id(settings["eos_token"]) == config["eos_token_id"] == simulated_model.END
    template = jinja2.Environment(autoescape=False).from_string((tmp_path / "chat_template.jinja").read_text())
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>"
    assert len(TOKENIZER.encode("<|system|><|end|><|user|><|assistant|>").ids) == 4
