"""Bounds of the public request: what is inside passes, what is outside is named, all of it at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from forebay.errors import Code, MeshError
from forebay.router.domain.ask import Ask, Chat, Message, ModelCard, Prompt, Sampling, Text, TokenIds
from forebay.router.domain.validation import check_ask, completion_bound
from forebay.rpc.status import to_status

CARD = ModelCard("m", context_tokens=100, default_max_tokens=20)
VOCABULARY = 1000
HELLO = Chat((Message("user", "hello"),))


def wrong_fields(ask: Ask, *, system_prompt: bool = False) -> list[str]:
    """Returns the paths of the fields that are at fault."""
    try:
        check_ask(ask, CARD, VOCABULARY, system_prompt, max_prompt_bytes=64)
    except MeshError as error:
        return [violation.field for violation in error.field_violations]
    return []


def ask(prompt: Prompt | None = HELLO, **fields: object) -> Ask:
    return Ask("m", prompt, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(max_tokens=1, temperature=0, top_p=1, top_k=0, min_p=0, seed=2**64 - 1, repetition_penalty=2),
        Sampling(max_tokens=100, min_tokens=100, temperature=2, presence_penalty=-2, frequency_penalty=2, min_p=1, n=1),
        Sampling(stop=("x" * 256,) * 16, stop_token_ids=(999,) * 64),
    ],
)
def test_what_is_within_the_bounds_passes(sampling: Sampling) -> None:
    labels = {str(n): "x" * 64 for n in range(8)}
    assert wrong_fields(ask(sampling=sampling, labels=labels, client_request_id="x" * 128, queue_timeout_s=0.1)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 101),
        ("min_tokens", 101),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.inf),
        ("top_k", 1001),
        ("min_p", 1.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("logprobs", 21),
        ("n", 0),
        ("n", 17),
        ("stop", ("x",) * 17),
        ("stop_token_ids", (1,) * 65),
        ("stop_token_ids", (1000,)),
    ],
)
def test_sampling_outside_its_bounds_is_named(field: str, value: object) -> None:
    sampling = replace(Sampling(), **{field: value})  # type: ignore[arg-type]
    assert wrong_fields(ask(sampling=sampling)) == [f"sampling.{field}"]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (None, "prompt"),
        (Chat(()), "prompt.chat.messages"),
        (Chat((Message("user", ""),) * 1025), "prompt.chat.messages"),
        (Chat((Message("user", "a"), Message("boss", "b"))), "prompt.chat.messages[1].role"),
        (Chat((Message("user", "é" * 33),)), "prompt.chat.messages"),
        (Text(""), "prompt.text"),
        (Text("x" * 65), "prompt.text"),
        (TokenIds(()), "prompt.tokens.ids"),
        (TokenIds((1,) * 101), "prompt.tokens.ids"),
        (TokenIds((1000,)), "prompt.tokens.ids"),
    ],
)
def test_a_prompt_outside_its_bounds_is_named(prompt: Prompt | None, field: str) -> None:
    assert wrong_fields(ask(prompt)) == [field]


@pytest.mark.parametrize(("prompt", "field"), [(Text("a"), "prompt.text"), (TokenIds((1,)), "prompt.tokens")])
def test_a_system_prompt_cannot_be_gone_round(prompt: Prompt, field: str) -> None:
    assert wrong_fields(ask(prompt)) == []
    assert wrong_fields(ask(prompt), system_prompt=True) == [field]
    assert wrong_fields(ask(HELLO), system_prompt=True) == []


def test_all_violations_are_named_at_once() -> None:
    everything = ask(
        Chat((Message("boss", "b"),)),
        sampling=Sampling(temperature=3, stop=("", "x" * 257)),
        client_request_id="x" * 129,
        labels={"x" * 65: ""} | {str(n): "" for n in range(8)},
        queue_timeout_s=0.0,
    )
    assert wrong_fields(everything) == [
        "prompt.chat.messages[0].role",
        "sampling.temperature",
        "sampling.stop[0]",
        "sampling.stop[1]",
        "client_request_id",
        "labels",
        "labels",
        "queue_timeout",
    ]


def test_no_more_violations_are_named_than_an_answer_can_carry() -> None:
    with pytest.raises(MeshError) as caught:
        check_ask(ask(Chat((Message("boss", ""),) * 1024)), CARD, VOCABULARY, False, 64)
    assert caught.value.message.endswith("(and 1021 more)")
    assert len(caught.value.field_violations) == 16
    assert len(to_status(caught.value).SerializeToString()) < 4096, "base64 and the rest of the trailers come on top"


@pytest.mark.parametrize("sampling", [Sampling(n=2), Sampling(logprobs=0), Sampling(structured_output=True)])
def test_what_is_not_offered_yet_is_said_so(sampling: Sampling) -> None:
    with pytest.raises(MeshError, match="not offered yet") as caught:
        check_ask(ask(sampling=sampling), CARD, VOCABULARY, False, 64)
    assert caught.value.code is Code.UNIMPLEMENTED


def test_max_tokens_is_what_was_asked_for_or_the_default_as_it_fits() -> None:
    assert completion_bound(10, Sampling(), CARD) == 20
    assert completion_bound(90, Sampling(), CARD) == 10
    assert completion_bound(90, Sampling(max_tokens=10), CARD) == 10
    assert completion_bound(90, Sampling(max_tokens=10), CARD, least_max_tokens=10) == 10


@pytest.mark.parametrize(
    ("prompt_tokens", "sampling", "field"),
    [
        (100, Sampling(), "prompt"),
        (90, Sampling(max_tokens=11), "sampling.max_tokens"),
        (90, Sampling(min_tokens=11), "sampling.min_tokens"),
    ],
)
def test_prompt_and_completion_must_fit_the_context(prompt_tokens: int, sampling: Sampling, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        completion_bound(prompt_tokens, sampling, CARD)
    assert [violation.field for violation in caught.value.field_violations] == [field]


@pytest.mark.parametrize("least", [1, 9])
def test_what_may_be_shortened_to_lies_between_the_bounds(least: int) -> None:
    with pytest.raises(MeshError) as caught:
        completion_bound(10, Sampling(max_tokens=8, min_tokens=2), CARD, least)
    assert [violation.field for violation in caught.value.field_violations] == ["least_max_tokens"]
