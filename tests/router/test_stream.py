"""The stream between engine and client: each token once, in order, however it is cut and however it is read."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.router.domain.stream import TokenStream

TOKENS = st.lists(st.integers(0, 50_000), max_size=60)


@settings(deadline=None, max_examples=60)
@given(tokens=TOKENS, cuts=st.lists(st.integers(0, 5)), takes=st.lists(st.booleans()))
def test_any_partition_and_any_reading_speed_delivers_each_token_once_in_order(
    tokens: list[int], cuts: list[int], takes: list[bool]
) -> None:
    stream = TokenStream(limit=len(tokens))
    left, seen, text = list(tokens), [], ""
    reads = iter(takes)
    for cut in [*cuts, len(tokens)]:
        delta, left = left[:cut], left[cut:]
        assert stream.append(delta, "".join(f"<{t}>" for t in delta), "", len(tokens) - len(left))
        if next(reads, False) and stream.pending:
            position, piece, words = stream.take()
            assert position == len(seen)
            seen += piece
            text += words
    while stream.pending:
        position, piece, words = stream.take()
        assert position == len(seen)
        seen += piece
        text += words
    assert seen == tokens
    assert text == "".join(f"<{t}>" for t in tokens)


def test_a_piece_is_bounded() -> None:
    stream = TokenStream(limit=10_000)
    for token in range(10_000):
        assert stream.append([token], "x", "", token + 1)
    sizes = []
    while stream.pending:
        position, tokens, text = stream.take()
        assert tokens == list(range(position, position + len(text)))
        sizes.append(len(tokens))
    assert sizes == [4096, 4096, 1808]


def test_a_gap_a_repeat_and_too_much_change_nothing() -> None:
    stream = TokenStream(limit=4)
    assert stream.append([1, 2], "ab", "", 2)
    assert not stream.append([4], "d", "", 4)  # a gap: position 2 is missing
    assert not stream.append([2], "b", "", 2)  # a repeat
    assert not stream.append([3, 4, 5], "cde", "", 5)  # more than max_tokens
    assert stream.take() == (0, [1, 2], "ab")
    assert stream.append([3], "c", "", 3)
    assert stream.take() == (2, [3], "c")


def test_text_without_tokens_is_passed_on_and_held_text_is_kept() -> None:
    stream = TokenStream(limit=4)
    assert stream.append([1], "", "\N{REPLACEMENT CHARACTER}", 1)
    assert stream.pending
    assert stream.take() == (0, [1], "")
    assert stream.held_text == "\N{REPLACEMENT CHARACTER}"
    assert stream.append([], "é", "", 1)
    assert stream.pending
    assert stream.take() == (1, [], "é")
    assert stream.held_text == ""


def test_what_is_held_at_the_end_is_released_once() -> None:
    stream = TokenStream(limit=4)
    assert stream.append([1], "", "EN", 1)
    assert stream.append([], "", "", 1), "an end without output"
    assert stream.take() == (0, [1], "")
    assert stream.release()
    assert stream.take() == (1, [], "EN")
    assert not stream.release()
    assert not stream.pending
