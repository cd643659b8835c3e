"""The pauses between restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.cli.restart import RestartPolicy

POLICY = RestartPolicy()


def test_the_pause_doubles_up_to_its_bound() -> None:
    pauses: list[float] = []
    pause = None
    for _ in range(7):
        pause = POLICY.pause(pause, lived_s=0.1)
        pauses.append(pause)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_long_life_begins_anew() -> None:
    assert POLICY.pause(5.0, lived_s=10.0) == 0.2
    assert POLICY.pause(5.0, lived_s=9.9) == 5.0


@given(st.lists(st.floats(0, 100), max_size=30))
def test_the_pause_stays_within_its_bounds(lives: list[float]) -> None:
    pause = None
    for lived_s in lives:
        pause = POLICY.pause(pause, lived_s)
        assert POLICY.first_s <= pause <= POLICY.longest_s
