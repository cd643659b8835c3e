"""Stop strings: found wherever the text is cut, and nothing held back that cannot belong to one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker.domain.stop_strings import StopStrings

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def ends_at(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Where the stop string that ends first begins and ends; of two with one end the first in the list."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return end - len(stop), end
    return None


def longest_beginning(text: str, stops: list[str]) -> str:
    """The longest end of the text that begins a stop string without being all of it."""
    return max(
        (
            text[at:]
            for at in range(len(text) + 1)
            if any(len(text) - at < len(s) and s.startswith(text[at:]) for s in stops)
        ),
        key=len,
        default="",
    )


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_it_agrees_with_looking_at_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    text = delivered = ""
    for piece in pieces:
        text += piece
        fresh, stopped = matcher.push(piece)
        delivered += fresh
        found = ends_at(text, stops)
        assert stopped == (found is not None)
        if found is not None:
            assert delivered == text[: found[0]]
            assert matcher.held == ""
            return
        assert matcher.held == longest_beginning(text, stops)
        assert delivered + matcher.held == text


@settings(max_examples=60, deadline=None)
@given(before=LETTERS, after=LETTERS, stops=STOPS)
def test_held_text_carries_the_search_to_another_engine(before: str, after: str, stops: list[str]) -> None:
    first = StopStrings(stops)
    _, stopped = first.push(before)
    if stopped:
        return
    second = StopStrings(stops, first.held)
    assert second.held == first.held
    assert second.push(after) == first.push(after)
    assert second.held == first.held


def test_a_stop_string_below_min_tokens_is_passed_over() -> None:
    matcher = StopStrings(["ab", "bcd"])
    assert matcher.push("xab", armed=False) == ("xa", False)
    assert matcher.held == "b"  # of "bcd"
    assert matcher.push("cd") == ("", True)


def test_without_stop_strings_held_text_of_another_engine_comes_first() -> None:
    matcher = StopStrings([], "held")
    assert matcher.push(" and more") == ("held and more", False)
    assert matcher.flush() == ""


def test_the_end_of_the_text_gives_up_what_is_held() -> None:
    matcher = StopStrings(["###"])
    assert matcher.push("a##") == ("a", False)
    assert matcher.flush() == "##"
    assert matcher.held == ""
