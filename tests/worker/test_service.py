"""The register of attempts: whatever happens, each attempt ends once, is metered once, and its time is attributed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import Code, MeshError
from forebay.testing.clock import FakeClock
from forebay.worker.domain.roster import Entry, Roster
from forebay.worker.domain.salt import cache_salt
from forebay.worker.domain.usage import Ending, Outcome, UsageEvent
from forebay.worker.engine import FinishReason, Step
from forebay.worker.event_log import Kept, MemoryEventLog
from forebay.worker.register import KEPT_WITHIN_S
from forebay.worker.router_stream import Finish
from forebay.worker.service import WorkerService

from .doubles import EPOCH, INCARNATION, WORKER, HandEngine, RecordedReports, RecordedStream, attempt_id, start

ONE, TWO, THREE = (attempt_id(n) for n in (1, 2, 3))


class Bench:
    """A service with doubles on all sides."""

    def __init__(self, log_limit: int = 100, log: MemoryEventLog | None = None) -> None:
        self.clock = FakeClock()
        self.engine = HandEngine()
        self.log = MemoryEventLog(log_limit) if log is None else log
        self.keys: dict[str, bytes] = {"acme": b"a" * 32, "globex": b"g" * 32}
        self.roster = Roster(WORKER, INCARNATION)
        self.service = WorkerService(self.engine, self.log, self.roster, self.clock, self.keys.get)
        self.reports = RecordedReports()
        self.service.scheduler = self.reports
        self.service.started = True
        self.engine._sink = self.service.step

    def events(self) -> list[UsageEvent]:
        return list(self.log.unacknowledged())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def finish_of(stream: RecordedStream, ref: int) -> Finish:
    (finish,) = [item[-1] for item in stream.said if item[1] == ref and isinstance(item[-1], Finish)]
    return finish


def test_a_whole_attempt(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.clock.advance(1.0)
    bench.engine.step(ONE, at=0.5, seconds=0.25)
    bench.engine.step(ONE, at=0.75, seconds=0.25, finish=FinishReason.STOP)
    finish = finish_of(stream, 1)
    assert (finish.ending, finish.completion_tokens, finish.prompt_tokens) == (Ending.STOP, 2, 10)
    assert finish.gpu_time_ns == 500_000_000
    assert finish.phases.scheduled_at == 0.5
    (event,) = bench.events()
    assert (event.id, event.outcome, event.completion_from, event.completion_to) == (ONE, Outcome.COMPLETED, 0, 2)
    (departure,) = bench.reports.departures
    assert (departure.id, departure.generated_tokens, departure.scheduled) == (ONE, 2, True)
    assert bench.service.running == bench.roster.running == 0


def test_one_step_reaches_each_router_in_one_piece(bench: Bench) -> None:
    here, there = RecordedStream(), RecordedStream()
    bench.service.start(here, start(1))
    bench.service.start(here, start(2))
    bench.service.start(there, start(3))
    bench.engine.step(ONE, TWO, THREE)
    assert [[item[1] for item in flush] for flush in here.flushed] == [[1, 2]]
    assert [[item[1] for item in flush] for flush in there.flushed] == [[3]]


def test_a_cancel_aborts_and_meters_what_was_used(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.engine.step(ONE)
    bench.service.cancel(stream, 1, Ending.BUDGET)
    bench.service.cancel(stream, 1, Ending.CANCELLED)  # repeated: nothing more
    stream.flush(0)
    assert bench.engine.aborted == [str(ONE)]
    assert finish_of(stream, 1).ending is Ending.BUDGET
    (event,) = bench.events()
    assert (event.outcome, event.completion_to) == (Outcome.BUDGET_STOPPED, 1)


def test_output_that_comes_after_the_end_is_dropped_and_its_time_goes_to_the_mesh(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.service.cancel(stream, 1, Ending.CANCELLED)
    stream.flush(0)
    bench.engine.step(ONE, seconds=0.01)
    assert [item[0] for item in stream.said] == ["finished"]
    assert bench.service.unattributed_ns == bench.service.busy_ns == 10_000_000


def test_a_step_of_nobody_is_the_meshs(bench: Bench) -> None:
    bench.service.step(Step(1, 0.0, 0.01, [], []))
    assert bench.service.unattributed_ns == bench.service.busy_ns == 10_000_000


def test_a_broken_session_ends_all_of_its_attempts_and_no_others(bench: Bench) -> None:
    broken, other = RecordedStream(), RecordedStream()
    for ref in (1, 2):
        bench.service.start(broken, start(ref))
    bench.service.start(other, start(3))
    bench.engine.step(ONE, TWO, THREE)
    bench.service.session_ended(broken)
    bench.service.session_ended(broken)
    assert sorted(bench.engine.aborted) == [str(ONE), str(TWO)]
    assert [(event.id, event.outcome) for event in bench.events()] == [
        (ONE, Outcome.CANCELLED),
        (TWO, Outcome.CANCELLED),
    ]
    assert bench.service.running == 1


def test_a_refused_payload_leaves_nothing_behind(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, incarnation=1))
    stream.flush(0)
    assert stream.said == [("refused", 1, "WRONG_INCARNATION")]
    assert not bench.engine.added
    assert not bench.events()
    assert not bench.reports.departures


def test_a_payload_that_the_engine_refuses_frees_its_room_and_is_not_metered(bench: Bench) -> None:
    stream = RecordedStream()
    bench.engine.refuse = MeshError(Code.INVALID_ARGUMENT, "TOO_LONG", "too long")
    bench.service.start(stream, start(1))
    stream.flush(0)
    assert stream.said == [("refused", 1, "TOO_LONG")]
    assert not bench.events()
    assert [(d.id, d.scheduled) for d in bench.reports.departures] == [(ONE, False)]
    assert bench.service.running == bench.roster.running == 0


def test_a_ref_in_use_is_a_protocol_violation(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    with pytest.raises(MeshError, match="REF_IN_USE"):
        bench.service.start(stream, start(1, attempt=2))


def test_salts_are_the_tenants_own(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, "acme"))
    bench.service.start(stream, start(2, "globex"))
    salts = [request.cache_salt for request in bench.engine.added.values()]
    assert salts == [cache_salt(b"a" * 32), cache_salt(b"g" * 32)]


def test_a_payload_of_an_unknown_tenant_waits_for_its_policy(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, "initech"))
    assert not bench.engine.added
    bench.keys["initech"] = b"i" * 32
    bench.service.policies_changed()
    assert bench.engine.added[str(ONE)].cache_salt == cache_salt(b"i" * 32)
    bench.clock.advance(5.0)
    bench.service.tick()
    assert not stream.said


def test_a_tenant_that_stays_unknown_is_refused_when_the_grant_expires(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, "initech"))
    bench.clock.advance(1.9)
    bench.service.tick()
    assert not stream.said
    bench.clock.advance(0.1)
    bench.service.tick()
    assert stream.said == [("refused", 1, "POLICY_UNKNOWN")]
    assert not bench.events()
    assert bench.service.running == bench.roster.running == 0


def test_nothing_runs_with_an_empty_isolation_key(bench: Bench) -> None:
    bench.keys["acme"] = b""
    bench.service.start(RecordedStream(), start(1))
    assert not bench.engine.added


@pytest.mark.parametrize("how", ["cancel", "session", "evict", "deadline"])
def test_whatever_ends_a_waiting_payload_it_is_refused_and_not_metered(bench: Bench, how: str) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, "initech", remaining=1.0))
    match how:
        case "cancel":
            bench.service.cancel(stream, 1, Ending.CANCELLED)
        case "session":
            bench.service.session_ended(stream)
        case "evict":
            bench.service.evict(ONE)
        case "deadline":
            bench.clock.advance(1.0)
            bench.service.tick()
    stream.flush(0)
    assert [item[0] for item in stream.said] == ["refused"]
    assert not bench.events()
    assert not bench.engine.aborted


def test_the_clients_deadline_ends_an_attempt(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, remaining=1.5))
    bench.clock.advance(1.5)
    bench.service.tick()
    assert finish_of(stream, 1).ending is Ending.CANCELLED
    assert bench.engine.aborted == [str(ONE)]


def test_an_eviction_hands_over(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.engine.step(ONE)
    bench.service.evict(ONE)
    assert stream.said[-1] == ("handed_over", 1, "EVICTED")
    assert [event.outcome for event in bench.events()] == [Outcome.HANDED_OVER]


def test_a_drain_refuses_then_hands_over(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.service.drain(10.0)
    bench.service.drain(5.0)
    assert bench.reports.drains == 1
    bench.service.start(stream, start(2))
    stream.flush(0)
    assert stream.said == [("refused", 2, "DRAINING")]
    bench.clock.advance(5.0)
    bench.service.tick()
    assert stream.said[-1] == ("handed_over", 1, "DRAINING")
    assert [event.outcome for event in bench.events()] == [Outcome.HANDED_OVER]


def test_a_dead_engine_hands_everything_over(bench: Bench) -> None:
    stream = RecordedStream()
    for ref in (1, 2):
        bench.service.start(stream, start(ref))
    bench.engine.healthy = False
    bench.engine.step(ONE, tokens=0, finish=FinishReason.ERROR)  # an engine may still say so for each
    bench.service.tick()
    assert stream.said == [("handed_over", 1, "ENGINE_FAILED"), ("handed_over", 2, "ENGINE_FAILED")]
    assert len(bench.events()) == 2
    assert not bench.service.healthy
    bench.service.start(stream, start(3))
    stream.flush(0)
    assert stream.said[-1] == ("refused", 3, "ENGINE_NOT_READY")


def test_one_failed_request_of_a_healthy_engine_is_an_error(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.engine.step(ONE, tokens=0, finish=FinishReason.ERROR)
    finish = finish_of(stream, 1)
    assert finish.ending is Ending.ERROR
    assert finish.error is not None
    assert finish.error.reason == "ENGINE_ERROR"
    assert [event.outcome for event in bench.events()] == [Outcome.FAILED]


def test_a_request_that_the_engine_gives_up_is_no_deadline_that_passed(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1))
    bench.engine.step(ONE, finish=FinishReason.CANCELLED)
    finish = finish_of(stream, 1)
    assert finish.ending is Ending.CANCELLED
    assert finish.error is not None
    assert (finish.error.code, finish.error.reason) == (Code.UNAVAILABLE, "ENGINE_GAVE_UP")


def test_a_worker_whose_events_are_not_acknowledged_takes_no_more_and_loses_none() -> None:
    bench, stream = Bench(log_limit=2), RecordedStream()
    bench.service.start(stream, start(1))
    bench.service.start(stream, start(2))
    assert not bench.service.healthy
    bench.service.start(stream, start(3))
    stream.flush(0)
    assert stream.said == [("refused", 3, "METERING_BEHIND")]
    bench.engine.step(ONE, TWO, finish=FinishReason.LENGTH)
    assert len(bench.events()) == 2
    assert not bench.service.healthy
    bench.log.acknowledge(1)
    assert bench.service.healthy
    bench.service.start(stream, start(3))
    assert str(THREE) in bench.engine.added


def test_what_is_given_back_takes_no_room_in_the_event_log() -> None:
    bench, stream = Bench(log_limit=1), RecordedStream()
    bench.engine.refuse = MeshError(Code.INVALID_ARGUMENT, "TOO_LONG", "too long")
    for ref in (1, 2):
        bench.service.start(stream, start(ref))
    assert [item[-1] for item in stream.said] == ["TOO_LONG", "TOO_LONG"]
    assert bench.service.healthy


class SlowLog(MemoryEventLog):
    """Keeps starts when it is told to, and remembers checkpoints."""

    def __init__(self) -> None:
        super().__init__(10)
        self.starts: list[tuple[UsageEvent, Kept]] = []
        self.checkpoints: list[list[UsageEvent]] = []

    def begin(self, event: UsageEvent, kept: Kept) -> None:
        self.starts.append((event, kept))

    def keep(self, error: MeshError | None = None) -> None:
        for event, kept in self.starts:
            super().begin(event, lambda _, kept=kept: kept(error))  # type: ignore[misc]
        self.starts.clear()

    def checkpoint(self, events: Iterable[UsageEvent]) -> None:
        self.checkpoints.append(list(events))


@pytest.fixture
def slow() -> Bench:
    return Bench(log=SlowLog())


def slow_log(bench: Bench) -> SlowLog:
    assert isinstance(bench.log, SlowLog)
    return bench.log


def test_nothing_runs_before_its_start_is_kept(slow: Bench) -> None:
    stream = RecordedStream()
    slow.service.start(stream, start(1))
    (event, _), *_ = slow_log(slow).starts
    assert (event.outcome, event.completion_from, event.completion_to) == (Outcome.LOST, 0, 0)
    assert not slow.engine.added
    slow_log(slow).keep()
    assert str(ONE) in slow.engine.added
    slow.engine.step(ONE, finish=FinishReason.STOP)
    assert [event.outcome for event in slow.events()] == [Outcome.COMPLETED]


def test_a_start_that_cannot_be_kept_is_refused(slow: Bench) -> None:
    stream = RecordedStream()
    slow.service.start(stream, start(1))
    slow_log(slow).keep(MeshError(Code.UNAVAILABLE, "SPOOL_UNAVAILABLE", "no room"))
    assert stream.said == [("refused", 1, "SPOOL_UNAVAILABLE")], "at once"
    assert slow.service.running == slow.roster.running == 0
    slow.service.start(stream, start(1, batch_id=2))  # another grant
    slow_log(slow).keep()
    assert str(ONE) in slow.engine.added


@pytest.mark.parametrize("how", ["cancel", "session", "evict", "deadline", "slow", "drain"])
def test_what_ends_before_its_start_is_kept_never_runs_and_is_not_metered(slow: Bench, how: str) -> None:
    stream = RecordedStream()
    slow.service.start(stream, start(1, remaining=1.0 if how == "deadline" else None))
    match how:
        case "cancel":
            slow.service.cancel(stream, 1, Ending.CANCELLED)
        case "session":
            slow.service.session_ended(stream)
        case "evict":
            slow.service.evict(ONE)
        case "deadline":
            slow.clock.advance(1.0)
            slow.service.tick()
        case "slow":
            slow.clock.advance(KEPT_WITHIN_S)
            slow.service.tick()
        case "drain":
            slow.service.drain(0.0)
            slow.service.tick()
    stream.flush(0)
    slow_log(slow).keep()
    assert stream.said == [("refused", 1, "SPOOL_UNAVAILABLE")]
    assert not slow.engine.added
    assert not slow.events()
    assert slow.service.running == slow.roster.running == 0


def test_once_a_second_what_has_come_further_is_checkpointed(slow: Bench) -> None:
    stream = RecordedStream()
    for ref in (1, 2):
        slow.service.start(stream, start(ref))
    slow_log(slow).keep()
    slow.engine.step(ONE, TWO)

    def checkpoints(seconds: float) -> list[tuple[str, int]]:
        slow_log(slow).checkpoints.clear()
        slow.clock.advance(seconds)
        slow.service.tick()
        return [(str(e.id), e.completion_to) for events in slow_log(slow).checkpoints for e in events]

    assert checkpoints(1.0) == [(str(ONE), 1), (str(TWO), 1)]
    slow.engine.step(TWO)
    assert checkpoints(0.5) == []
    assert checkpoints(0.5) == [(str(TWO), 2)]
    assert checkpoints(1.0) == []


def test_entries_expire_and_are_reported_once(bench: Bench) -> None:
    bench.service.announce([Entry(ONE, (EPOCH, 1), "acme", 30, 2.0)])
    assert [(holding.id, holding.started) for holding in bench.service.holdings()] == [(ONE, False)]
    bench.clock.advance(2.0)
    bench.service.tick()
    bench.service.tick()
    assert bench.reports.lapsed == [ONE]
    assert bench.service.holdings() == []


def test_progress_is_what_has_changed_since(bench: Bench) -> None:
    stream = RecordedStream()
    bench.service.start(stream, start(1, attempt=2, delivered=4))
    assert bench.service.take_progress() == []
    bench.engine.step(attempt_id(1, 2), tokens=3)
    assert [(p.generated_tokens, p.prefilled) for p in bench.service.take_progress()] == [(3, True)]
    assert bench.service.take_progress() == []
    assert [(h.generated_tokens, h.started) for h in bench.service.holdings()] == [(3, True)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["step", "finish", "cancel", "break", "evict"]), st.integers(1, 4)), max_size=15)
)
def test_every_attempt_is_metered_once_and_all_time_is_attributed(history: list[tuple[str, int]]) -> None:
    """Laws 2 and 6, over random histories of four attempts on two sessions."""
    bench, streams = Bench(), (RecordedStream(), RecordedStream())
    ids = {ref: attempt_id(ref) for ref in range(1, 5)}
    for ref in ids:
        bench.service.start(streams[ref % 2], start(ref))
    for n, (what, ref) in enumerate(history):
        match what:
            case "step":
                bench.engine.step(*list(ids.values())[:ref], seconds=0.001 * (n + 1))
            case "finish":
                bench.engine.step(ids[ref], finish=FinishReason.STOP)
            case "cancel":
                bench.service.cancel(streams[ref % 2], ref, Ending.CANCELLED)
            case "break":
                bench.service.session_ended(streams[ref % 2])
            case "evict":
                bench.service.evict(ids[ref])
    for stream in streams:
        bench.service.session_ended(stream)
    events = bench.events()
    assert sorted(event.id.request_id for event in events) == sorted(id.request_id for id in ids.values())
    assert sorted(map(str, (d.id for d in bench.reports.departures))) == sorted(map(str, ids.values()))
    assert sum(event.gpu_time_ns for event in events) + bench.service.unattributed_ns == bench.service.busy_ns
    assert bench.service.running == bench.roster.running == 0
