"""The text of an attempt: characters, stop strings, and what is left at its end."""

from __future__ import annotations

import pytest

from forebay.worker import simulated_model
from forebay.worker.answer_text import AnswerText

from .builders import request

TOKENIZER = simulated_model.tokenizer()
ODD = "\N{REPLACEMENT CHARACTER}"


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def test_text_ends_before_a_stop_string() -> None:
    text = AnswerText(TOKENIZER, request(stop=("turn",)))
    tokens = ids("The mill t")
    assert text.push(tokens) == (len(tokens), "The mill ", False)
    assert text.held == "t"
    more = ids("urns 🙂")
    count, piece, stopped = text.push(more)
    assert (piece, stopped, text.position) == ("", True, len(tokens) + count)


@pytest.mark.parametrize("last", [(), (simulated_model.END,)], ids=["at its length", "by an end token"])
def test_what_is_held_comes_at_the_end(last: tuple[int, ...]) -> None:
    text = AnswerText(TOKENIZER, request(stop=("turn",)))
    tokens = [*ids("tur"), *ids("🙂")[:2], *last]
    assert text.push(tokens, ended=bool(last)) == (len(tokens), "tur" if len(last) > 1 else "", False)
    assert text.end() == ("tur" + ODD, False)
    assert (text.held, text.position) == ("", len(tokens))


def test_a_token_that_ends_the_answer_has_no_text() -> None:
    text = AnswerText(TOKENIZER, request())
    tokens = ids("a b")
    assert text.push(tokens, ended=True) == (len(tokens), "a", False)


def test_odd_characters_come_at_once() -> None:
    text = AnswerText(TOKENIZER, request())
    pieces = [text.push([token])[1] for token in ids(ODD * 8)]
    assert "".join(pieces) == ODD * 8
    assert pieces[2::3] == [ODD] * 8


def test_half_a_character_may_complete_a_stop_string() -> None:
    text = AnswerText(TOKENIZER, request(stop=(f"b{ODD}",)))
    assert text.push([*ids("ab"), *ids("🙂")[:3]])[1:] == ("a", False)
    assert text.end() == ("", True)


def test_it_continues_where_another_attempt_was() -> None:
    tokens = ids("The mühle 🙂 turns.")
    for cut in range(len(tokens) + 1):
        first = AnswerText(TOKENIZER, request(stop=("ns.",)))
        before = first.push(tokens[:cut])
        if before[2]:
            continue
        second = AnswerText(TOKENIZER, request(stop=("ns.",), delivered=tokens[:cut], held_text=first.held))
        count, after, stopped = second.push(tokens[cut:])
        assert before[1] + after == "The mühle 🙂 tur"
        assert stopped
        assert second.position == cut + count


def test_no_stop_string_counts_below_min_tokens() -> None:
    text = AnswerText(TOKENIZER, request(stop=("a",), min_tokens=2))
    assert text.push(ids("a"))[1:] == ("a", False)
    assert text.push(ids("b"))[1:] == ("b", False)
    assert text.push(ids("a"))[1:] == ("", True)
