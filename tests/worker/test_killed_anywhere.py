"""A request that is killed at any token, and goes on elsewhere, bills exactly what it bills undisturbed (rule P6).

Whole workers (service, spool, simulated engine) are driven by hand, on a disk in memory that outlives them. A router in
small keeps what arrived and brings it to the next worker. Then what all lives reported is billed by the rule as it is
written: the prompt by the first attempt with an event; completion positions by the attempt that has them between its
completion_from and completion_to, clipped by the next attempt's completion_from. Of an attempt that was lost, completion_to
is the larger of the worker's checkpoint and what the router received (P5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import MeshError
from forebay.testing.clock import FakeClock
from forebay.worker.domain.roster import Roster
from forebay.worker.domain.step_cost import StepCost
from forebay.worker.domain.usage import Outcome, UsageEvent
from forebay.worker.engine import Capacity, Output, Sampling
from forebay.worker.router_stream import Finish
from forebay.worker.service import CHECKPOINT_INTERVAL_S, WorkerService
from forebay.worker.simulated_engine import SimulatedEngine
from forebay.worker.spool_directory import SpoolDirectory
from forebay.worker.spool_event_log import SpoolEventLog
from forebay.worker.start import Start

from .doubles import INCARNATION, SAMPLING, WORKER, attempt_id, start

PROMPT = list(range(300, 310))
TOKENS = 6  # of an undisturbed run that ends by its length
STEP_NS = 10_000_000
STEP = StepCost(fixed=STEP_NS / 1e9, per_sequence=0.0, per_context_token=0.0, per_prefill_token=0.0)
CAPACITY = Capacity(4096, 16, 8, 512, 256, 0)
LENGTH = replace(SAMPLING, max_tokens=TOKENS)


class Disk(SpoolDirectory):
    """A spool's directory in memory, which is still there when the worker is not."""

    def __init__(self) -> None:
        self.path = Path("memory")
        self.content = b""
        self.segment_bytes = 0

    def read(self) -> bytes:
        return self.content

    def begin_segment(self, records: bytes) -> None:
        self.content = records

    def append(self, records: bytes) -> None:
        self.content += records

    def sync(self) -> None: ...


@pytest.fixture(autouse=True)
def inline() -> Iterator[None]:
    """Has threads' work done at once."""

    async def call(work: Callable[..., None], *args: Any, **rest: Any) -> None:
        work(*args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", call)
        yield


def run(work: Any) -> None:
    """Runs what awaits nothing."""
    with pytest.raises(StopIteration):
        work.send(None)


@dataclass(eq=False)
class Wire:
    """What a worker says of one attempt, in the order of the wire."""

    outputs: list[Output] = field(default_factory=list)
    finish: Finish | None = None
    given_up: str = ""

    def output(self, ref: int, output: Output, finish: Finish | None) -> None:
        assert not self.given_up, "nothing follows a handover"
        self.outputs.append(output)
        self.finish = finish

    def finished(self, ref: int, finish: Finish) -> None:
        self.finish = finish

    def refused(self, ref: int, error: MeshError) -> None:
        self.given_up = error.reason

    def handed_over(self, ref: int, reason: str) -> None:
        self.given_up = reason

    def flush(self, step: int) -> None: ...


class Worker:
    """One life of a worker."""

    def __init__(self, disk: Disk) -> None:
        self.clock = FakeClock()
        self.log = SpoolEventLog(disk, 100, 1 << 20, self.clock)
        self.engine = SimulatedEngine(CAPACITY, STEP, manual=True, monotonic=self.clock.monotonic)
        roster = Roster(WORKER, INCARNATION)
        self.service = WorkerService(self.engine, self.log, roster, self.clock, lambda tenant: b"k" * 32)
        self.service.started = True
        run(self.engine.start(self.service.step))

    def write(self) -> None:
        run(self.log._write())

    def checkpoint(self) -> None:
        self.clock.advance(CHECKPOINT_INTERVAL_S)
        self.service.tick()
        self.write()


@dataclass(frozen=True)
class End:
    """How an attempt ends.

    Attributes:
        how: "killed"; "broken" is its session; "evicted" and "drained" hand it over; "refused" never ran. Or killed when its
            start was "written" and not yet kept, or "unwritten" yet.
        at: tokens that the engine yielded until then.
        checkpoint: after how many of them the last checkpoint was.
        received: how many of them reached the router; all of them before a handover.
    """

    how: str
    at: int = 0
    checkpoint: int = 0
    received: int = 0


@dataclass
class Request:
    """A request as its router sees it, and what was reported of it.

    Attributes:
        continues: whether one of its attempts can have reached an engine.
        seen: by attempt, the positions that the router saw come: what it reports to metering.
        events: by attempt, what workers report.
        busy_ns: the engines' time.
    """

    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    held: str = ""
    over: bool = False
    continues: bool = False
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    events: dict[int, UsageEvent] = field(default_factory=dict)
    busy_ns: int = 0

    def attempt(self, number: int, end: End) -> None:
        """Runs one attempt on a worker of its own, until it ends by itself or as `end` says."""
        wire, disk, base = Wire(), Disk(), len(self.tokens)
        worker = Worker(disk)
        if end.how == "refused":
            worker.service.drain(0.0)
        worker.service.start(wire, self._start(number))
        match end.how:
            case "unwritten":
                pass
            case "written":
                disk.append(b"".join(worker.log._changes.values()))
            case _:
                worker.write()
                self._step(worker, end)
        self.busy_ns += worker.service.busy_ns
        match end.how:
            case "broken":
                worker.service.session_ended(wire)
            case "evicted":
                worker.service.evict(attempt_id(1, number))
            case "drained":
                worker.service.drain(0.0)
                worker.service.tick()
            case "killed" | "written" | "unwritten":
                worker = Worker(disk)
        worker.write()
        reported = {event.id.attempt: event for event in worker.log.unacknowledged()}
        assert reported.keys() <= {number}
        assert len(worker.log) == len(reported), "once"
        self.events |= reported
        if end.how == "refused":
            assert wire.given_up == "DRAINING"
            return
        arrived = wire.outputs[: end.received] if end.how in ("killed", "broken") else wire.outputs
        for output in arrived:
            self.tokens += output.token_ids
            self.text += output.text
            self.held = output.held_text
            self.over = output.finish is not None
        self.seen[number] = base, len(self.tokens)
        self.continues = True

    def _start(self, number: int) -> Start:
        return replace(
            start(1, attempt=number, delivered=len(self.tokens)),
            prompt_token_ids=PROMPT,
            delivered_token_ids=list(self.tokens),
            held_text=self.held,
            continues=self.continues,
            sampling=self.sampling,
        )

    def _step(self, worker: Worker, end: End) -> None:
        for count in range(end.at + 1):
            if count and worker.engine.step() is None:
                return
            if count == end.checkpoint:
                worker.checkpoint()

    def bill(self) -> tuple[int, int]:
        """Returns prompt and completion tokens as billed by rules P5 and P6."""
        completion, clip = 0, self.sampling.max_tokens
        attempts = sorted(self.events.keys() | self.seen.keys())
        for number in reversed(attempts):
            begin, to = self.seen[number]
            event = self.events.get(number)
            if event is not None:
                assert event.completion_from == begin
                to = max(event.completion_to, to) if event.outcome is Outcome.LOST else event.completion_to
            completion += max(0, min(to, clip) - begin)
            clip = min(clip, begin)
        first = self.events.get(attempts[0])
        return len(PROMPT) if first is None else first.prompt_tokens, completion


def play(sampling: Sampling, *ends: End) -> Request:
    """Runs a request to its end, whatever happens to its first attempts."""
    request = Request(sampling)
    for number, end in enumerate([*ends, End("finished", at=sampling.max_tokens)], start=1):
        request.attempt(number, end)
        if request.over:
            break
    return request


def check(request: Request) -> None:
    """Compares a request with what it would have been undisturbed, and conserves what was measured."""
    undisturbed = play(request.sampling)
    assert (request.tokens, request.text) == (undisturbed.tokens, undisturbed.text), "no gap, no repeat (law 5)"
    assert request.bill() == undisturbed.bill() == (len(PROMPT), len(undisturbed.tokens))
    events = request.events.values()
    assert sum(event.gpu_time_ns for event in events) <= request.busy_ns, "the rest is the mesh's (law 6)"
    assert all(event.recomputed_gpu_time_ns <= event.gpu_time_ns for event in events)
    computed = [event for event in events if event.gpu_time_ns and not event.recomputed_tokens]
    assert len(computed) <= 1, "the prompt is computed once on the tenant's account"
    assert all(event.id.attempt == min(request.seen) for event in computed)


@pytest.mark.parametrize("how", ["killed", "broken"])
@pytest.mark.parametrize("at", range(TOKENS + 1))
def test_at_every_token_whatever_spool_and_router_have_seen(at: int, how: str) -> None:
    for checkpoint in range(at + 1):
        for received in range(at + 1):
            request = play(LENGTH, End(how, at, checkpoint, received))
            check(request)
            first = request.events[1]
            known = at if how == "broken" or checkpoint == TOKENS else checkpoint
            lost = how == "killed" and checkpoint < TOKENS
            assert (first.outcome is Outcome.LOST) == lost
            assert (first.completion_from, first.completion_to) == (0, known)
            assert (first.gpu_time_ns, first.recomputed_tokens) == (known * STEP_NS, 0)
            if received < TOKENS:
                second = request.events[2]
                assert (second.completion_from, second.completion_to) == (received, TOKENS)
                assert second.recomputed_tokens == len(PROMPT) + received
                assert second.gpu_time_ns == (TOKENS - received) * STEP_NS
                assert second.recomputed_gpu_time_ns == STEP_NS


@pytest.mark.parametrize("how", ["evicted", "drained"])
@pytest.mark.parametrize("at", range(TOKENS))
def test_a_handover_at_every_token_repeats_and_loses_none(at: int, how: str) -> None:
    request = play(LENGTH, End(how, at))
    check(request)
    first, second = request.events[1], request.events[2]
    assert first.outcome is Outcome.HANDED_OVER
    assert (first.completion_from, first.completion_to) == (0, at)
    assert (second.completion_from, second.completion_to) == (at, TOKENS)


@pytest.mark.parametrize("how", ["unwritten", "written"])
def test_killed_before_the_engine_had_it(how: str) -> None:
    request = play(LENGTH, End(how))
    check(request)
    assert (1 in request.events) == (how == "written")
    assert request.events[2].recomputed_tokens == len(PROMPT), "the router cannot know that nothing was computed"


def test_a_refused_attempt_leaves_nothing_to_recompute() -> None:
    request = play(LENGTH, End("refused"))
    check(request)
    assert list(request.events) == [2]
    assert (request.events[2].recomputed_tokens, request.events[2].recomputed_gpu_time_ns) == (0, 0)


samplings = st.builds(
    lambda seed, tokens, stop, ignore_eos: replace(
        SAMPLING, seed=seed, max_tokens=tokens, stop=stop, ignore_eos=ignore_eos
    ),
    st.integers(0, 1 << 32),
    st.integers(1, 20),
    st.sampled_from([(), (".",), (" and it", " the d"), (" the gate slowly.",)]),
    st.booleans(),
)


@st.composite
def ends(draw: st.DrawFn) -> End:
    at = draw(st.integers(0, 8))
    how = draw(st.sampled_from(["killed", "killed", "broken", "evicted", "drained", "refused", "written", "unwritten"]))
    return End(how, at, draw(st.integers(0, at)), draw(st.integers(0, at)))


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(samplings, st.lists(ends(), max_size=4))
def test_however_often_and_however_it_ends(sampling: Sampling, history: list[End]) -> None:
    check(play(sampling, *history))
