"""What the link does at each turn of its session, without a wire."""

from __future__ import annotations

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.errors import Code, MeshError
from forebay.rpc.leader import LeaderChannel
from forebay.rpc.session import Outbox
from forebay.testing.clock import FakeClock
from forebay.worker.domain.roster import Roster
from forebay.worker.domain.usage import Ending, UsageEvent
from forebay.worker.event_log import EventLog, Kept, MemoryEventLog
from forebay.worker.scheduler_link import SchedulerLink
from forebay.worker.service import WorkerService

from .doubles import INCARNATION, WORKER, HandEngine, RecordedStream, attempt_id, start

LOST = MeshError(Code.UNAVAILABLE, "SESSION_ENDED", "gone")


class Bench:
    """A link on a service, and the session it would write to."""

    def __init__(self, limit: int = 100, event_log: EventLog | None = None) -> None:
        self.clock = FakeClock()
        self.engine = HandEngine()
        self.service = WorkerService(
            self.engine,
            MemoryEventLog(100) if event_log is None else event_log,
            Roster(WORKER, INCARNATION),
            self.clock,
            lambda tenant: b"k" * 32,
        )
        self.service.started = True
        self.engine._sink = self.service.step
        register = scheduler_pb2.AttachRequest.Register(address="127.0.0.1:1")
        self.schedulers = LeaderChannel(["127.0.0.1:1", "127.0.0.1:2"], grpc.aio.insecure_channel)
        self.link = SchedulerLink(self.schedulers, self.service, self.engine, register, self.clock)
        self.stream = RecordedStream()
        self.outbox = self.open(limit)

    def open(self, limit: int = 100, epoch: int = 3) -> Outbox[scheduler_pb2.AttachRequest]:
        async def write(message: scheduler_pb2.AttachRequest) -> None: ...

        self.outbox = self.link._session.outbox = Outbox(scheduler_pb2.AttachRequest, write, limit)
        self.link.opened(self.outbox)
        if epoch:
            self.welcome(epoch)
        return self.outbox

    def welcome(self, epoch: int, leader: str = "") -> None:
        welcome = scheduler_pb2.Welcome(epoch=epoch, leader_address=leader)
        self.link.received(scheduler_pb2.AttachResponse(welcome=welcome))

    def said(self) -> scheduler_pb2.AttachRequest:
        """Returns what has gathered since the last time."""
        message, self.outbox.message = self.outbox.message, scheduler_pb2.AttachRequest()
        return message

    def batch(self, *numbers: int, batch_id: int = 1, epoch: int = 3) -> None:
        entries = [scheduler_pb2.Batch.Entry(ref=ref(n), tenant_id="acme", kv_tokens=30) for n in numbers]
        batches = [scheduler_pb2.Batch(batch_id=batch_id, epoch=epoch, entries=entries)]
        self.link.received(scheduler_pb2.AttachResponse(batches=batches))


def ref(number: int) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(request_id=f"{number:032x}", attempt=1)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_session_begins_with_all_that_the_worker_holds(bench: Bench) -> None:
    bench.service.start(bench.stream, start(1))
    bench.batch(2)
    bench.link.closed(LOST)
    bench.service.start(bench.stream, start(3))
    bench.open()
    said = bench.said()
    assert said.register.address == "127.0.0.1:1"
    assert said.register.capacity.max_num_seqs == 8
    assert {(a.ref.request_id[-1], a.started) for a in said.running} == {("1", True), ("2", False), ("3", True)}
    assert said.running_complete
    assert said.engine.healthy
    assert not said.departures


async def test_nothing_is_reported_before_the_epoch_is_known_and_then_nothing_that_an_earlier_one_granted(
    bench: Bench,
) -> None:
    bench.service.start(bench.stream, start(1))
    bench.batch(2)
    bench.link.closed(LOST)
    bench.open(epoch=0)
    bench.service.cancel(bench.stream, 1, Ending.CANCELLED)
    bench.link.tick()
    said = bench.said()
    assert (said.HasField("register"), len(said.running), said.running_complete) == (True, 0, False)
    bench.welcome(4)
    said = bench.said()
    assert (list(said.running), said.running_complete) == ([], True)
    bench.service.start(bench.stream, start(2))
    bench.stream.flush(0)
    assert bench.stream.said[-1] == ("refused", 2, "STALE_EPOCH")


@pytest.mark.parametrize(
    ("epoch", "leader", "next_one"), [(0, "", "127.0.0.1:2"), (0, "a:9", "a:9"), (2, "", "127.0.0.1:2")]
)
async def test_who_does_not_lead_is_told_nothing_and_left(bench: Bench, epoch: int, leader: str, next_one: str) -> None:
    bench.link.closed(LOST)
    bench.link.closed(LOST)
    assert bench.schedulers.address == "127.0.0.1:1"
    bench.open(epoch=0)
    bench.said()
    with pytest.raises(MeshError, match="NOT_LEADER") as caught:
        bench.welcome(epoch, leader)
    bench.link.closed(caught.value)
    assert bench.said() == scheduler_pb2.AttachRequest()
    assert bench.schedulers.address == next_one


async def test_an_entry_without_a_payload_expires_and_its_late_payload_is_refused(bench: Bench) -> None:
    bench.batch(1)
    bench.clock.advance(2.0)
    bench.service.tick()
    assert list(bench.said().expired) == [ref(1)]
    bench.service.start(bench.stream, start(1))
    bench.stream.flush(0)
    assert bench.stream.said == [("refused", 1, "STALE_GRANT")]


async def test_a_withdrawn_entry_is_gone_and_nobody_is_told(bench: Bench) -> None:
    bench.said()
    bench.batch(1)
    bench.link.received(scheduler_pb2.AttachResponse(withdrawals=[ref(1)]))
    bench.clock.advance(5.0)
    bench.service.tick()
    assert not bench.said().expired


async def test_an_attempt_that_is_withdrawn_and_drawn_anew_at_once_may_come(bench: Bench) -> None:
    bench.batch(1)
    anew = scheduler_pb2.Batch.Entry(ref=ref(1), tenant_id="acme", kv_tokens=30)
    both = scheduler_pb2.AttachResponse(
        withdrawals=[ref(1)], batches=[scheduler_pb2.Batch(batch_id=2, epoch=3, entries=[anew])]
    )
    bench.link.received(both)
    assert [entry.draw for entry in bench.service.roster.pending] == [(3, 2)]


async def test_an_eviction_reaches_the_router_and_comes_back_as_a_departure(bench: Bench) -> None:
    bench.service.start(bench.stream, start(1))
    bench.engine.step(attempt_id(1))
    bench.link.received(scheduler_pb2.AttachResponse(evictions=[ref(1), ref(2)]))
    assert bench.stream.said[-1] == ("handed_over", 1, "EVICTED")
    (departure,) = bench.said().departures
    assert (departure.ref, departure.generated_tokens, departure.started) == (ref(1), 1, True)
    assert departure.reason == common_pb2.FINISH_REASON_UNSPECIFIED


async def test_an_entry_that_is_evicted_before_its_payload_comes_frees_its_room(bench: Bench) -> None:
    bench.batch(1)
    bench.link.received(scheduler_pb2.AttachResponse(evictions=[ref(1), ref(2)]))
    assert list(bench.said().expired) == [ref(1)]
    assert not bench.service.roster.pending


async def test_epochs_of_welcomes_and_batches_count(bench: Bench) -> None:
    bench.welcome(4)
    bench.service.start(bench.stream, start(1))
    bench.batch(2, epoch=5)
    bench.service.start(bench.stream, start(2, epoch=4))
    bench.stream.flush(0)
    assert bench.stream.said == [("refused", 1, "STALE_EPOCH"), ("refused", 2, "STALE_EPOCH")]


async def test_the_scheduler_can_drain_the_worker(bench: Bench) -> None:
    bench.link.received(scheduler_pb2.AttachResponse(drain=True))
    assert bench.service.draining
    assert bench.said().draining
    assert not bench.said().draining
    bench.open()
    assert bench.said().draining, "a new session is told again"


async def test_what_happens_without_a_session_is_not_kept(bench: Bench) -> None:
    bench.service.start(bench.stream, start(1))
    bench.link.closed(LOST)
    bench.service.cancel(bench.stream, 1, Ending.CANCELLED)
    bench.link.tick()
    bench.open()
    said = bench.said()
    assert not said.departures
    assert not said.running


async def test_the_engines_state_is_said_each_second_and_when_health_changes(bench: Bench) -> None:
    def states(ticks: int) -> list[bool]:
        said = []
        for _ in range(ticks):
            bench.clock.advance(0.05)
            bench.link.tick()
            message = bench.said()
            said += [message.engine.healthy] if message.HasField("engine") else []
        return said

    bench.said()
    assert states(40) == [True, True]
    bench.engine.healthy = False
    assert states(2) == [False]


async def test_a_session_that_overflows_does_not_disturb_the_worker() -> None:
    bench = Bench(limit=2)
    for n in range(1, 5):
        bench.service.start(bench.stream, start(n))
    bench.service.session_ended(bench.stream)
    assert bench.service.running == 0


@pytest.mark.parametrize("before", [True, False])
async def test_a_worker_that_turns_a_payload_away_says_at_once_that_it_is_not_well(before: bool) -> None:
    class Troubled(MemoryEventLog):
        """Has trouble from the moment on that it is asked to keep a start, or from before."""

        problem: MeshError | None = None

        @property
        def trouble(self) -> MeshError | None:
            return self.problem

        def begin(self, event: UsageEvent, kept: Kept) -> None:
            self.problem = LOST
            kept(LOST)

    event_log = Troubled(100)
    bench = Bench(event_log=event_log)
    bench.said()
    event_log.problem = LOST if before else None
    bench.service.start(bench.stream, start(1))
    bench.stream.flush(0)
    assert bench.stream.said == [("refused", 1, "SESSION_ENDED")]
    said = bench.said()
    assert said.HasField("engine")
    assert not said.engine.healthy
    bench.service.start(bench.stream, start(2))
    assert not bench.said().HasField("engine"), "it is known"
