"""A wall clock that steps, and what a service takes for the time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.clock import BELIEVED_AFTER_S, NOTICED_S, SteadyClock
from forebay.testing.clock import FakeClock

START = 1_700_000_000.0


class Stepped(FakeClock):
    """A clock whose wall time is set ahead or back by hand."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture
def wall() -> Stepped:
    return Stepped(START)


@pytest.mark.parametrize("step", [-86_400.0, -600.0, -2.0, 2.0, 600.0, 400 * 86_400.0])
def test_a_step_that_does_not_last_is_never_seen(wall: Stepped, step: float) -> None:
    steady = SteadyClock(wall)
    for _ in range(3):
        wall.ahead = step
        wall.advance(BELIEVED_AFTER_S - 1)
        assert steady.now() == START + wall.monotonic()
        wall.ahead = 0.0
        wall.advance(1)
        assert steady.now() == START + wall.monotonic()


@pytest.mark.parametrize("step", [-86_400.0, 600.0])
def test_a_step_that_lasts_is_believed_after_a_minute(wall: Stepped, step: float) -> None:
    steady = SteadyClock(wall)
    wall.ahead = step
    assert steady.now() == START
    wall.advance(BELIEVED_AFTER_S)
    assert steady.now() == wall.now()
    wall.advance(5)
    assert steady.now() == wall.now() == START + step + BELIEVED_AFTER_S + 5


def test_a_small_correction_is_followed_at_once(wall: Stepped) -> None:
    steady = SteadyClock(wall)
    for ahead in (0.03, -0.9, 0.1):
        wall.ahead = ahead
        assert steady.now() == wall.now()


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from([0.0, 0.0, 5.0, -5.0, 600.0, -86_400.0])), max_size=40))
def test_it_is_off_by_no_more_than_the_clock_was(history: list[tuple[float, float]]) -> None:
    wall = Stepped(START)
    steady, seen = SteadyClock(wall), {0.0}
    for pause, ahead in history:
        wall.advance(pause)
        wall.ahead = ahead
        seen.add(ahead)
        off = steady.now() - START - wall.monotonic()
        assert min(abs(off - each) for each in seen) <= NOTICED_S
