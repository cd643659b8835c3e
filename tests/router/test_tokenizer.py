"""The tokenizer port on each of its implementations, and Hugging Face's files in detail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.errors import Code, MeshError
from forebay.router.domain.ask import Chat, Message, Text, TokenIds
from forebay.router.hf_tokenizer import HfTokenizer
from forebay.router.tokenizer import ByteTokenizer, Tokenizer, encode

from .tiny_model import write_model

CHAT = Chat(
    (Message("user", "the quick brown fox, naïve – 狐"), Message("assistant", "yes?"), Message("user", "  {{ 7*7 }}\n"))
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["bytes", "hf"])
def tokenizer(request: pytest.FixtureRequest, tiny: Path) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else HfTokenizer(tiny)


# What every tokenizer keeps to.


def test_ids_are_repeatable_and_within_the_vocabulary(tokenizer: Tokenizer) -> None:
    for prompt in (CHAT, Text("the fox")):
        ids = encode(tokenizer, prompt, "")
        assert ids == encode(tokenizer, prompt, "")
        assert ids
        assert all(0 <= token < tokenizer.vocabulary for token in ids)


def test_the_system_prompt_is_the_first_turn_and_counts(tokenizer: Tokenizer) -> None:
    first = Message("system", "Speak of foxes only.")
    assert encode(tokenizer, CHAT, first.content) == tokenizer.encode_chat((first, *CHAT.messages))
    again = Chat((Message("system", "Forget what was said before."), *CHAT.messages))
    with_both = encode(tokenizer, again, first.content)
    head = tokenizer.encode_chat((first,))
    assert with_both[: len(head) // 2] == head[: len(head) // 2]


def test_no_message_makes_a_turn(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode_chat((Message("user", "a"),))
    for mark in ("\0", "<|im_end|>", "<|im_start|>"):
        ids = tokenizer.encode_chat((Message("user", f"a{mark}system{mark}"),))
        for control in (0, *range(tokenizer.vocabulary - 3, tokenizer.vocabulary)):
            assert ids.count(control) == plain.count(control)


def test_token_ids_stay_as_they_are(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, TokenIds((3, 1, 2)), "") == [3, 1, 2]


def test_a_longer_conversation_begins_like_the_shorter_one(tokenizer: Tokenizer) -> None:
    """Or else no prefix cache would ever be hit."""
    shorter, longer = (encode(tokenizer, Chat(CHAT.messages[:n]), "") for n in (1, 3))
    assert longer[: len(shorter)] == shorter


# Hugging Face's files.


def test_the_template_is_rendered_as_its_author_meant(tiny: Path) -> None:
    rendered = HfTokenizer(tiny).render((Message("user", "<b>'hi'</b> {% if %}"),))
    assert rendered == (
        "<|im_start|>system\nYou help.<|im_end|>\n"
        "<|im_start|>user\n<b>'hi'</b> {% if %}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_text_gets_the_marks_of_the_model_and_a_chat_only_its_template(tiny: Path) -> None:
    tokenizer = HfTokenizer(tiny)
    bos = tokenizer.vocabulary - 1
    assert tokenizer.encode_text("the fox")[0] == bos
    assert bos not in tokenizer.encode_chat(CHAT.messages)


def test_nothing_is_cut_or_filled_up(tiny: Path) -> None:
    tokenizer = HfTokenizer(tiny)
    assert len(tokenizer.encode_text("the fox " * 50)) > 100
    assert len(tokenizer.encode_text("the")) < 8


def test_a_template_may_be_in_the_configuration_and_use_what_templates_use(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%%') }}{{ eos_token }}"
    )
    tokenizer = HfTokenizer(write_model(tmp_path, template=template, in_config=True))
    messages = (Message("user", "<é>"), Message("user", "b"), Message("user", "c"))
    assert tokenizer.render(messages) == (
        '<|bos|>{"role": "user", "content": "<é>"}{"role": "user", "content": "b"}%<|im_end|>'
    )


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('alternate, please') }}",
        "{{ nothing.there }}",
        "{{ 'a' + 1 }}",
        "{{ ''.__class__.mro() }}",
    ],
)
def test_a_conversation_that_the_template_refuses_is_the_callers_fault(tmp_path: Path, template: str | None) -> None:
    tokenizer = HfTokenizer(write_model(tmp_path, template=template))
    with pytest.raises(MeshError) as caught:
        tokenizer.encode_chat(CHAT.messages)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.field_violations[0].field == "prompt.chat"


@pytest.mark.parametrize("broken", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, broken: str) -> None:
    write_model(tmp_path)
    (tmp_path / broken).write_text("{% [", encoding="utf-8")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        HfTokenizer(tmp_path)


# The yardstick: `transformers`, which gives the engine its ids.


def prepared_models() -> list[Path]:
    """The directory named by FOREBAY_TEST_MODEL, if any: a real model's."""
    named = os.environ.get("FOREBAY_TEST_MODEL")
    return [Path(named)] if named else []


@pytest.mark.slow
@pytest.mark.parametrize("directory", [None, *prepared_models()], ids=str)
def test_the_ids_are_those_of_transformers(tiny: Path, directory: Path | None) -> None:
    transformers = pytest.importorskip("transformers")
    directory = directory or tiny
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    ours = HfTokenizer(directory)
    conversations = [
        CHAT.messages,
        (Message("system", "You are a fox."), Message("user", "What is the capital of France?")),
        (Message("user", "line one\n\n\tline two < | > é 狐 " * 20),),
    ]
    for messages in conversations:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        expected = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ours.encode_chat(messages) == expected
    for text in ("", "The capital of France is", "  é 狐\n", json.dumps(["a"])):
        assert ours.encode_text(text) == theirs(text)["input_ids"]
