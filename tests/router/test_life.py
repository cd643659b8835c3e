"""The life of a request: every order of events ends it exactly once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import Code, MeshError
from forebay.router.domain.decisions import (
    Cancel,
    Decision,
    Decline,
    End,
    Outcome,
    Report,
    Settlement,
    Start,
    Submit,
    Withdraw,
)
from forebay.router.domain.events import (
    Broken,
    Event,
    Finished,
    FinishReason,
    FirstOutput,
    Grant,
    Granted,
    HandedOver,
    Refused,
    Rejected,
    Reserved,
    Stop,
    Usage,
    UsageOverdue,
)
from forebay.router.domain.life import Life, State
from forebay.router.domain.stream import TokenStream

GONE = Stop(FinishReason.CANCELLED, MeshError(Code.CANCELLED, "CLIENT_GONE", "gone"))
BUDGET = Stop(FinishReason.BUDGET, None)
PROMPT_TOKENS = 5


def grant(attempt: int = 1, worker: str = "w1") -> Grant:
    return Grant(attempt, worker, 1, worker, 0.0, 4096, b"")


def error(code: Code, reason: str = "REASON") -> MeshError:
    return MeshError(code, reason, "message")


def finished(attempt: int = 1, reason: FinishReason = FinishReason.STOP, tokens: int = 0) -> Finished:
    return Finished(attempt, reason, Usage(PROMPT_TOKENS, 2, tokens), 0.5)


class Story:
    """A life, its stream, and all that was decided."""

    def __init__(self, *events: Event, continuable: bool = True, max_attempts: int = 3, limit: int = 8) -> None:
        self.stream = TokenStream(limit)
        self.life = Life(self.stream, PROMPT_TOKENS, continuable=continuable, max_attempts=max_attempts)
        self.decisions: list[Decision] = []
        self.tell(*events)

    def tell(self, *events: Event) -> Sequence[Decision]:
        new = [decision for event in events for decision in self.life.on(event)]
        self.decisions += new
        return new

    def yield_tokens(self, count: int) -> None:
        position = self.stream.received
        assert self.stream.append(list(range(position, position + count)), "", "", position + count)
        self.tell(FirstOutput(self.life.attempt))

    @property
    def reports(self) -> list[Report]:
        return [decision for decision in self.decisions if isinstance(decision, Report)]

    @property
    def ends(self) -> list[End]:
        return [decision for decision in self.decisions if isinstance(decision, End)]


EVENTS = st.one_of(
    st.just(Reserved()),
    st.builds(Granted, st.builds(grant, st.integers(1, 4), st.sampled_from(["w1", "w2"]))),
    st.builds(Rejected, st.integers(1, 4), st.just(error(Code.UNAVAILABLE))),
    st.builds(FirstOutput, st.integers(1, 4)),
    st.builds(Refused, st.integers(1, 4), st.sampled_from(Code).map(error)),
    st.builds(HandedOver, st.integers(1, 4), st.just("DRAINING")),
    st.builds(Broken, st.integers(1, 4), st.booleans()),
    st.builds(finished, st.integers(1, 4), st.sampled_from(FinishReason)),
    st.sampled_from([GONE, BUDGET, UsageOverdue()]),
    st.integers(1, 3),  # tokens that come
)


@settings(deadline=None, max_examples=60)
@given(events=st.lists(EVENTS, max_size=40), continuable=st.booleans(), reserved=st.booleans())
def test_any_order_of_events_ends_exactly_once(events: list[Event | int], continuable: bool, reserved: bool) -> None:
    story = Story(*([Reserved()] if reserved else []), continuable=continuable)
    for event in events:
        if not isinstance(event, int):
            story.tell(event)
        elif story.life.state in (State.GRANTED, State.RUNNING) and story.stream.received + event <= story.stream.limit:
            story.yield_tokens(event)
    # Whatever has happened, a client that leaves and a worker that keeps silent end it.
    story.tell(GONE, UsageOverdue())
    assert len(story.ends) == 1
    assert isinstance(story.decisions[-1], End | Decline)
    assert story.life.state is State.DONE
    submitted = [decision.attempt for decision in story.decisions if isinstance(decision, Submit)]
    assert submitted == list(range(1, len(submitted) + 1))
    started = [decision.grant.attempt for decision in story.decisions if isinstance(decision, Start)]
    assert len(set(started)) == len(started), "an attempt runs once"
    assert set(started) <= set(submitted)
    settlement = story.life.settlement()
    assert settlement.started or settlement == Settlement(False, Usage(0), 0.0)

    # Money: what is reported began, once each, and one begins where the one before has ended.
    reported = [report.grant.attempt for report in story.reports]
    assert reported == sorted(set(reported))
    assert set(reported) <= set(started)
    assert bool(reported) <= settlement.started
    assert [report.continued for report in story.reports] == [False, *[True] * (len(reported) - 1)][: len(reported)]
    lost = [report for report in story.reports if not report.confirmed]
    for before, after in itertools.pairwise(story.reports):
        assert before.completion_to == after.completion_from
    if lost and story.reports[-1] is lost[-1]:
        assert settlement.usage == Usage(PROMPT_TOKENS, 0, lost[-1].completion_to), "the ledger and the quota agree"


def test_the_straight_way() -> None:
    story = Story(Reserved(), Granted(grant()))
    story.yield_tokens(3)
    assert story.life.state is State.RUNNING
    story.tell(finished(tokens=3))
    report = Report(grant(), Outcome.COMPLETED, False, 0, 3, cached_tokens=2, gpu_time_s=0.5, confirmed=True)
    assert story.decisions == [Submit(1), Start(grant()), report, End(FinishReason.STOP)]
    assert story.life.settlement() == Settlement(True, Usage(PROMPT_TOKENS, 2, 3), 0.5)


def test_a_broken_session_is_continued_elsewhere_from_the_tokens_received() -> None:
    story = Story(Reserved(), Granted(grant()))
    story.yield_tokens(3)
    assert story.tell(Broken(1)) == [Withdraw(1), Report(grant(), Outcome.LOST, False, 0, 3), Submit(2)]
    assert (story.life.base, story.life.excluded, story.life.continued) == (3, "w1", True)
    story.tell(Granted(grant(2, "w2")))
    story.yield_tokens(2)
    (report, end) = story.tell(finished(2, FinishReason.LENGTH, 5))
    assert report == Report(grant(2, "w2"), Outcome.COMPLETED, True, 3, 5, 2, 0.5, confirmed=True)
    assert end == End(FinishReason.LENGTH)
    assert story.life.settlement().usage == Usage(PROMPT_TOKENS, 0, 5), "what was cached for attempt 1 is not known"


def test_a_session_that_carried_no_payload_costs_nothing() -> None:
    story = Story(Reserved(), Granted(grant()))
    assert story.tell(Broken(1, sent=False)) == [Withdraw(1), Submit(2)]
    assert (story.life.excluded, story.life.continued) == ("w1", False)
    story.tell(GONE)
    assert not story.life.settlement().started


def test_a_payload_that_may_have_run_is_charged_without_output() -> None:
    story = Story(Reserved(), Granted(grant()), Broken(1))
    story.tell(GONE)
    assert story.reports == [Report(grant(), Outcome.LOST, False, 0, 0)]
    assert story.life.settlement() == Settlement(True, Usage(PROMPT_TOKENS, 0, 0), 0.0)


def test_a_worker_is_avoided_by_the_next_attempt_only() -> None:
    story = Story(Reserved(), Granted(grant()), Broken(1), Granted(grant(2, "w2")), max_attempts=9)
    story.tell(Broken(2), Granted(grant(3, "w1")))
    assert story.life.excluded == "w2"
    story.tell(Refused(3, error(Code.ABORTED)))
    assert story.life.excluded is None


def test_a_lost_attempt_is_not_continued_for_ever() -> None:
    story = Story(Reserved(), Granted(grant()), Broken(1), Granted(grant(2, "w2")), max_attempts=2)
    (report, end) = story.tell(HandedOver(2, "DRAINING"))
    assert report == Report(grant(2, "w2"), Outcome.HANDED_OVER, True, 0, 0)
    assert isinstance(end, End)
    assert end.error is not None
    assert (end.error.code, end.error.reason) == (Code.UNAVAILABLE, "WORKER_LOST")


def test_penalties_can_be_started_again_but_not_continued() -> None:
    again = Story(Reserved(), Granted(grant()), continuable=False)
    assert again.tell(Broken(1))[-1] == Submit(2)
    lost = Story(Reserved(), Granted(grant()), continuable=False)
    lost.yield_tokens(1)
    (*_, end) = lost.tell(Broken(1))
    assert isinstance(end, End)
    assert end.error is not None
    assert end.error.reason == "WORKER_LOST"
    assert lost.life.settlement() == Settlement(True, Usage(PROMPT_TOKENS, 0, 1), 0.0)


def test_a_stream_that_lacks_only_its_end_is_complete() -> None:
    story = Story(Reserved(), Granted(grant()), limit=2)
    story.yield_tokens(2)
    assert story.tell(Broken(1)) == [Withdraw(1), Report(grant(), Outcome.LOST, False, 0, 2), End(FinishReason.LENGTH)]


@pytest.mark.parametrize("code", [Code.ABORTED, Code.UNAVAILABLE])
def test_a_stale_grant_is_asked_for_again_on_any_worker(code: Code) -> None:
    story = Story(Reserved(), Granted(grant()))
    assert story.tell(Refused(1, error(code))) == [Decline(1), Submit(2)]
    assert story.life.excluded is None
    assert not story.life.continued
    assert story.reports == []


@pytest.mark.parametrize(
    ("code", "told"),
    [(Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT), (Code.ALREADY_EXISTS, Code.INTERNAL)],
)
def test_a_payload_that_no_worker_takes_fails(code: Code, told: Code) -> None:
    story = Story(Reserved(), Granted(grant()))
    (decline, end) = story.tell(Refused(1, error(code, "WHY")))
    assert decline == Decline(1)
    assert isinstance(end, End)
    assert end.error is not None
    assert (end.error.code, end.error.reason) == (told, "WHY")
    assert not story.life.settlement().started


def test_a_client_that_leaves_the_queue_is_withdrawn_and_pays_nothing() -> None:
    story = Story(Reserved())
    assert story.tell(GONE) == [Withdraw(1), End(GONE.reason, GONE.error)]
    assert story.tell(Granted(grant())) == [Decline(1)]
    assert not story.life.settlement().started


def test_a_client_that_leaves_a_running_request_pays_what_the_worker_says() -> None:
    story = Story(Reserved(), Granted(grant()))
    story.yield_tokens(2)
    assert story.tell(GONE) == [Cancel(FinishReason.CANCELLED)]
    assert story.life.state is State.STOPPING
    (report, end) = story.tell(finished(reason=FinishReason.CANCELLED, tokens=4))
    assert isinstance(report, Report)
    assert (report.outcome, report.completion_to) == (Outcome.CANCELLED, 4)
    assert end == End(GONE.reason, GONE.error)
    assert story.life.settlement().usage.completion_tokens == 4


def test_a_worker_that_does_not_say_is_taken_at_what_it_has_sent() -> None:
    story = Story(Reserved(), Granted(grant()))
    story.yield_tokens(2)
    story.tell(GONE)
    assert story.tell(UsageOverdue()) == [Report(grant(), Outcome.CANCELLED, False, 0, 2), End(GONE.reason, GONE.error)]
    assert story.life.settlement() == Settlement(True, Usage(PROMPT_TOKENS, 0, 2), 0.0)


def test_a_spent_budget_ends_the_answer_regularly() -> None:
    story = Story(Reserved(), Granted(grant()))
    assert story.tell(BUDGET) == [Cancel(FinishReason.BUDGET)]
    assert story.tell(finished(reason=FinishReason.BUDGET))[-1] == End(FinishReason.BUDGET)
    assert [report.outcome for report in story.reports] == [Outcome.BUDGET_STOPPED]


def test_an_answer_that_was_complete_in_time_is_not_called_cut_short() -> None:
    story = Story(Reserved(), Granted(grant()), BUDGET)
    assert story.tell(finished(reason=FinishReason.STOP))[-1] == End(FinishReason.STOP)


def test_an_evicted_attempt_goes_on_wherever_there_is_room_however_often() -> None:
    story = Story(Reserved(), max_attempts=2)
    for attempt in range(1, 6):
        assert story.tell(Granted(grant(attempt)))
        story.yield_tokens(1)
        (report, submit) = story.tell(HandedOver(attempt, "EVICTED"))
        assert isinstance(report, Report)
        assert (report.outcome, report.completion_from, report.completion_to) == (
            Outcome.HANDED_OVER, attempt - 1, attempt,
        )  # fmt: skip
        assert submit == Submit(attempt + 1)
        assert story.life.excluded is None
    story.tell(Granted(grant(6)), HandedOver(6, "DRAINING"), Granted(grant(7, "w2")))
    assert isinstance(story.tell(Broken(7))[-1], End), "what was lost counts all the same"


def test_a_grant_for_fewer_tokens_shortens_the_answer_for_good() -> None:
    story = Story(Reserved(), Granted(replace(grant(), max_tokens=5)), limit=8)
    assert story.stream.limit == 5
    story.yield_tokens(3)
    story.tell(Broken(1), Granted(replace(grant(2), max_tokens=4096)))
    assert story.stream.limit == 5
    story.yield_tokens(2)
    assert story.tell(Broken(2))[-1] == End(FinishReason.LENGTH)


def test_the_same_grant_again_is_ignored_and_another_is_declined() -> None:
    story = Story(Reserved(), Granted(grant()))
    assert story.tell(Granted(grant())) == []
    assert story.tell(Granted(grant(worker="w2"))) == [Decline(1)]


def test_a_word_about_an_earlier_attempt_changes_nothing() -> None:
    story = Story(Reserved(), Granted(grant()), Broken(1), Granted(grant(2, "w2")))
    late = [
        Broken(1),
        HandedOver(1, "EVICTED"),
        Refused(1, error(Code.ABORTED)),
        finished(1),
        Rejected(1, error(Code.UNAVAILABLE)),
    ]
    assert story.tell(*late) == []
    assert story.life.state is State.GRANTED


def test_an_engine_that_fails_fails_the_request() -> None:
    story = Story(Reserved(), Granted(grant()))
    (_, end) = story.tell(finished(reason=FinishReason.ERROR))
    assert isinstance(end, End)
    assert end.error is not None
    assert end.error.code is Code.INTERNAL


def test_a_worker_that_cancels_unasked_kept_to_the_deadline() -> None:
    story = Story(Reserved(), Granted(grant()))
    (_, end) = story.tell(finished(reason=FinishReason.CANCELLED))
    assert isinstance(end, End)
    assert end.error is not None
    assert end.error.code is Code.DEADLINE_EXCEEDED
