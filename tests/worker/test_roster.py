"""An attempt runs at most once, whatever the order in which batches, payloads and ends arrive."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.errors import MeshError
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.roster import Entry, Roster

from .test_grant import GRANT, PAYLOAD

IDS = [AttemptId(f"{n:032x}", 1) for n in range(3)]


def entry(id: AttemptId = GRANT.id, draw: tuple[int, int] = (3, 1), expires_at: float = 2.0) -> Entry:
    return Entry(id, draw, "acme", 30, expires_at)


def roster(**bounds: int) -> Roster:
    return Roster("worker-1", 7, **bounds)


def reason(error: pytest.ExceptionInfo[MeshError]) -> str:
    return error.value.reason


def test_a_payload_takes_its_entry() -> None:
    worker = roster()
    worker.announce(entry())
    worker.admit(GRANT, PAYLOAD)
    assert worker.pending == []
    assert worker.expire(10.0) == []


def test_a_batch_that_comes_after_its_payload_changes_nothing() -> None:
    worker = roster()
    worker.admit(GRANT, PAYLOAD)
    worker.announce(entry())
    worker.finish(GRANT.id)
    worker.announce(entry())
    assert worker.pending == []


def test_an_entry_expires_once_and_its_late_payload_is_refused() -> None:
    worker = roster()
    worker.announce(entry(expires_at=2.0))
    assert worker.expire(1.9) == []
    assert worker.expire(2.0) == [GRANT.id]
    assert worker.expire(9.0) == []
    with pytest.raises(MeshError) as error:
        worker.admit(GRANT, PAYLOAD)
    assert reason(error) == "STALE_GRANT"


def test_a_later_draw_of_a_lapsed_attempt_runs() -> None:
    worker = roster()
    worker.announce(entry(draw=(3, 1)))
    worker.withdraw(GRANT.id)
    worker.announce(entry(draw=(3, 1)))
    assert worker.pending == []
    worker.announce(entry(draw=(3, 2)))
    assert [e.draw for e in worker.pending] == [(3, 2)]
    worker.admit(replace(GRANT, batch_id=2), PAYLOAD)


def test_a_released_attempt_may_come_again_with_another_grant_only() -> None:
    worker = roster()
    worker.admit(GRANT, PAYLOAD)
    worker.release(GRANT.id)
    with pytest.raises(MeshError) as error:
        worker.admit(GRANT, PAYLOAD)
    assert reason(error) == "STALE_GRANT"
    worker.admit(replace(GRANT, batch_id=2), PAYLOAD)


def test_an_epoch_counts_when_its_leader_has_been_met_and_not_before() -> None:
    worker = roster()
    worker.saw_epoch(4)
    with pytest.raises(MeshError) as error:
        worker.admit(replace(GRANT, id=IDS[1], epoch=5), PAYLOAD)
    assert reason(error) == "UNKNOWN_EPOCH"
    worker.admit(replace(GRANT, id=IDS[1], epoch=4), PAYLOAD)
    worker.saw_epoch(5)
    with pytest.raises(MeshError) as error:
        worker.admit(replace(GRANT, id=IDS[2], epoch=4), PAYLOAD)
    assert reason(error) == "STALE_EPOCH"
    worker.admit(replace(GRANT, id=IDS[2], epoch=5), PAYLOAD)


def test_entries_of_earlier_epochs_lapse() -> None:
    worker = roster()
    for id, epoch in zip(IDS, (3, 4, 5), strict=True):
        worker.announce(entry(id, (epoch, 1)))
    worker.saw_epoch(4)
    assert [e.draw for e in worker.pending] == [(4, 1), (5, 1)]


def test_everything_is_bounded() -> None:
    worker = roster(max_running=1, max_pending=1, memory=1)
    worker.admit(replace(GRANT, id=IDS[0]), PAYLOAD)
    with pytest.raises(MeshError) as error:
        worker.admit(replace(GRANT, id=IDS[1]), PAYLOAD)
    assert reason(error) == "WORKER_FULL"
    assert worker.announce(entry(IDS[1]))
    assert not worker.announce(entry(IDS[2]))
    worker.finish(IDS[0])
    worker.admit(replace(GRANT, id=IDS[1]), PAYLOAD)
    worker.finish(IDS[1])
    worker.admit(replace(GRANT, id=IDS[0]), PAYLOAD)  # forgotten: its memory is 1


class Histories(RuleBasedStateMachine):
    """Random histories of three attempts against a plain model of what may have run."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = roster()
        self.running: set[AttemptId] = set()
        self.done: list[AttemptId] = []
        self.now = 0.0
        self.batch = 0

    ids = st.sampled_from(IDS)

    @rule(id=ids, delay=st.floats(0, 3))
    def announce(self, id: AttemptId, delay: float) -> None:
        self.batch += 1
        self.roster.announce(entry(id, (3, self.batch), self.now + delay))

    @rule(id=ids, back=st.integers(0, 3))
    def admit(self, id: AttemptId, back: int) -> None:
        grant = replace(GRANT, id=id, batch_id=max(0, self.batch - back))
        if id in self.running or id in self.done:
            with pytest.raises(MeshError, match="ALREADY_RUN"):
                self.roster.admit(grant, PAYLOAD)
            return
        try:
            self.roster.admit(grant, PAYLOAD)
        except MeshError:
            return  # its draw lapsed
        self.running.add(id)

    @rule(id=ids)
    def withdraw(self, id: AttemptId) -> None:
        self.roster.withdraw(id)

    @rule(seconds=st.floats(0, 2))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        assert not set(self.roster.expire(self.now)) & (self.running | set(self.done))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.running, key=str)))
        self.roster.finish(id)
        self.running.remove(id)
        self.done.append(id)

    @invariant()
    def each_is_in_one_place(self) -> None:
        pending = [entry.id for entry in self.roster.pending]
        assert len(pending) == len(set(pending))
        assert not set(pending) & (self.running | set(self.done))
        assert self.roster.running == len(self.running)
        assert len(self.done) == len(set(self.done))


Histories.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestHistories = Histories.TestCase
