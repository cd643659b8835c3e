"""Who was in a step, and how long it took, from what vLLM reports. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forebay.testing.clock import FakeClock
from forebay.worker.domain.continuation import continuation_seed
from forebay.worker.vllm_steps import StepRecorder


class Engine:
    """A recorder, and a hand that plays vLLM's part."""

    def __init__(self, clock: FakeClock) -> None:
        self.reports = 0
        self.clock = clock
        self.recorder = StepRecorder(self._reported, clock.monotonic)

    def _reported(self) -> None:
        self.reports += 1

    def step(self, seconds: float, prompts: int, decoding: int, *, computed: bool = True, preempted: int = 0) -> None:
        self.clock.advance(seconds)
        details = SimpleNamespace(num_ctx_requests=prompts, num_generation_requests=decoding) if computed else None
        self.recorder.record(
            SimpleNamespace(kv_cache_usage=0.5, iteration_details=details),
            SimpleNamespace(num_preempted_reqs=preempted),
        )

    def outputs(self, *attempt_ids: str) -> None:
        for attempt_id in attempt_ids:
            self.recorder.yielded(attempt_id)

    def took(self) -> tuple[float, list[str]]:
        started_at, ended_at, participants = self.recorder.take()
        return round(ended_at - started_at, 6), participants


@pytest.fixture
def engine(clock: FakeClock) -> Engine:
    return Engine(clock)


def test_who_yields_was_in_the_step(engine: Engine) -> None:
    engine.clock.advance(5.0)
    engine.recorder.added("a/1", 0)
    engine.recorder.added("b/1", 0)
    assert (engine.recorder.running, engine.recorder.waiting) == (0, 2)
    engine.step(0.2, prompts=2, decoding=0)
    engine.outputs("a/1", "b/1")
    assert engine.took() == (0.2, ["a/1", "b/1"])
    engine.step(0.1, prompts=0, decoding=2)
    engine.outputs("b/1", "a/1")
    assert engine.took() == (0.1, ["b/1", "a/1"])
    assert (engine.recorder.running, engine.recorder.waiting) == (2, 0)
    assert engine.reports == 2


def test_prompts_in_chunks_are_the_first_by_priority_and_stay_so(engine: Engine) -> None:
    engine.recorder.added("later/1", 5)
    engine.recorder.added("first/1", 1)
    engine.step(0.1, prompts=1, decoding=0)
    assert engine.took() == (0.1, ["first/1"])
    assert (engine.recorder.running, engine.recorder.waiting) == (1, 1)
    engine.recorder.added("urgent/1", 0)  # comes too late to be before the one that has begun
    engine.step(0.1, prompts=1, decoding=0)
    assert engine.took() == (0.1, ["first/1"])
    engine.step(0.1, prompts=2, decoding=0)
    engine.outputs("first/1")
    assert engine.took() == (0.1, ["first/1", "urgent/1"])


def test_an_aborted_attempt_is_in_the_step_that_was_under_way_and_no_further(engine: Engine) -> None:
    for attempt_id in ("a/1", "b/1"):
        engine.recorder.added(attempt_id, 0)
    engine.step(0.1, prompts=2, decoding=0)
    engine.outputs("a/1", "b/1")
    engine.took()
    engine.recorder.left("a/1")
    engine.step(0.1, prompts=0, decoding=2)
    engine.outputs("b/1")
    assert engine.took() == (0.1, ["b/1", "a/1"])
    engine.step(0.1, prompts=0, decoding=1)
    engine.outputs("b/1")
    assert engine.took() == (0.1, ["b/1"])


def test_the_time_is_from_work_to_work(engine: Engine) -> None:
    engine.recorder.added("a/1", 0)
    engine.step(0.3, prompts=1, decoding=0)
    engine.outputs("a/1")
    engine.recorder.left("a/1")
    assert engine.took() == (0.3, ["a/1"])
    engine.step(0.01, prompts=0, decoding=0, computed=False)  # only tidies up
    assert engine.reports == 1
    engine.clock.advance(60.0)  # idle
    engine.recorder.added("b/1", 0)
    engine.step(0.2, prompts=1, decoding=0)
    engine.step(0.1, prompts=0, decoding=1)
    engine.outputs("b/1")
    assert engine.took() == (0.3, ["b/1"])  # two steps that came in one tick


def test_it_keeps_what_the_state_shows(engine: Engine) -> None:
    engine.recorder.added("a/1", 0)
    engine.step(0.1, prompts=1, decoding=0, preempted=2)
    assert engine.recorder.kv_usage == 0.5
    assert engine.recorder.preemptions == 2
    engine.recorder.left("a/1")
    assert engine.recorder.kv_usage == 0.0


def test_a_continuation_draws_other_numbers_than_the_beginning() -> None:
    assert continuation_seed(7, 0) == 7
    seeds = {continuation_seed(7, position) for position in range(100)} | {continuation_seed(8, 1)}
    assert len(seeds) == 101
    assert all(0 <= seed < 2**63 for seed in seeds | {continuation_seed(2**64 - 1, 0)})
