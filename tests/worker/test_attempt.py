"""What an attempt says it used."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker.domain.attempt import Attempt
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.salt import cache_salt
from forebay.worker.domain.usage import Attribution, Ending, Outcome, Place, Trace

ATTRIBUTION = Attribution("acme", "key", "basic", False, "bronze", "tiny", 0.5, "mine", {"team": "a"})


def attempt(number: int = 1, delivered: int = 0, completion_from: int = 0, *, continues: bool = False) -> Attempt:
    return Attempt(
        AttemptId("0" * 32, number),
        ATTRIBUTION,
        Place("worker-1", 7, ""),
        adapter="",
        prompt_tokens=10,
        delivered_tokens=delivered,
        continues=continues,
        completion_from=completion_from,
        kv_tokens=30,
        received_at=100.0,
        started_at=1000.0,
    )


def test_a_first_attempt_bills_from_zero_and_recomputes_nothing() -> None:
    one = attempt()
    one.stepped(7, 101.0)
    one.generated(1, 4, 102.0)
    one.stepped(5, 102.0)
    one.generated(2, 4, 103.0)
    event = one.usage_event(Outcome.COMPLETED, 1004.0, Trace())
    assert (event.completion_from, event.completion_to) == (0, 2)
    assert (event.prompt_tokens, event.cached_tokens, event.recomputed_tokens) == (10, 4, 0)
    assert (event.gpu_time_ns, event.recomputed_gpu_time_ns) == (12, 0)
    assert event.time_to_first_token == pytest.approx(0.5 + 2.0)
    assert (event.started_at, event.finished_at) == (1000.0, 1004.0)
    phases = one.phases(104.0)
    assert (phases.received_at, phases.scheduled_at, phases.first_token_at, phases.last_token_at) == (
        100,
        101,
        102,
        103,
    )


def test_a_continuation_bills_its_own_positions_and_gives_the_prefill_to_the_mesh() -> None:
    two = attempt(number=2, delivered=5, completion_from=4, continues=True)
    two.stepped(7, 101.0)
    two.stepped(6, 102.0)
    two.generated(6, 3, 103.0)
    two.stepped(5, 103.0)
    two.generated(7, 3, 104.0)
    assert two.generated_tokens == 2
    event = two.usage_event(Outcome.COMPLETED, 1004.0, Trace())
    assert (event.completion_from, event.completion_to) == (4, 7)
    assert event.recomputed_tokens == 10 + 5 - 3
    assert (event.gpu_time_ns, event.recomputed_gpu_time_ns) == (18, 13)
    assert event.time_to_first_token is None


@pytest.mark.parametrize("continues", [False, True])
def test_only_what_an_earlier_attempt_can_have_computed_is_recomputed(continues: bool) -> None:
    two = attempt(number=2, continues=continues)
    two.stepped(7, 101.0)
    two.generated(1, 4, 102.0)
    event = two.usage_event(Outcome.COMPLETED, 1004.0, Trace())
    assert (event.recomputed_tokens, event.recomputed_gpu_time_ns) == ((6, 7) if continues else (0, 0))
    assert event.gpu_time_ns == 7


def test_an_attempt_without_a_step_used_nothing_but_its_place() -> None:
    event = attempt(number=2, continues=True).usage_event(Outcome.CANCELLED, 1001.0, Trace())
    assert (event.completion_to, event.recomputed_tokens, event.gpu_time_ns) == (0, 0, 0)
    phases = attempt().phases(101.0)
    assert (phases.scheduled_at, phases.first_token_at, phases.last_token_at) == (101.0, 101.0, 101.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), max_size=5), st.floats(90, 120))
def test_phases_never_go_back(steps: list[tuple[float, int]], ended_at: float) -> None:
    one, now, tokens = attempt(), 95.0, 0
    for seconds, new in steps:
        one.stepped(1, now)
        now, tokens = now + seconds, tokens + new
        one.generated(tokens, 0, now)
    phases = one.phases(ended_at)
    assert phases.received_at <= phases.scheduled_at <= phases.first_token_at <= phases.last_token_at


def test_every_ending_has_an_outcome() -> None:
    assert {ending: ending.outcome for ending in Ending}[Ending.LENGTH] is Outcome.COMPLETED
    assert {ending.outcome for ending in Ending} == set(Outcome) - {Outcome.LOST}


def test_salts_differ_between_tenants_and_hide_the_key() -> None:
    one, other = b"1" * 32, b"2" * 32
    assert cache_salt(one) == cache_salt(one) != cache_salt(other)
    assert len(cache_salt(one)) == 64
    assert one.hex() not in cache_salt(one)
