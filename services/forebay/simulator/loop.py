"""A loop of discrete events: requests arrive, a dispatcher decides, engines step, and word of all of it takes its time.

Between dispatcher and workers everything takes `delay_s` one way: what is started reaches its worker so much later, and what a
step did is known so much later. A worker looks at what it was sent when a step has ended, as vLLM does.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from forebay.simulator import engine as engines
from forebay.simulator.dispatcher import Ask, Dispatcher, Evict, Report, Start
from forebay.simulator.engine import Engine, EngineShape
from forebay.simulator.workload import Arrival

TICK_S = 0.1
"""The dispatcher is asked at least so often: some of what it decides depends on time alone."""

TOO_LARGE = "too_large"
"""The reason of a refusal: no engine could ever hold the request."""

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""What a token of the prompt and a generated one count for as service."""


@dataclass(slots=True)
class Served:
    """What became of one request.

    Attributes:
        arrival: what was asked.
        asked: the max_tokens that it named.
        refusal: why it was not served; empty when it was or may still be.
        started_at: when it was first sent to a worker; None while it has not come so far, as below.
        first_token_at, finished_at: on the worker.
        generated: tokens so far.
        evictions: how often it was taken from its worker to be started again.
    """

    arrival: Arrival
    asked: int
    refusal: str = ""
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    generated: int = 0
    evictions: int = 0


@dataclass(slots=True)
class Outcome:
    """What a whole run came to.

    Attributes:
        served: every request, in order of arrival.
        ended_at: when the last request ended, or the run was cut.
        preemptions: by engines.
        evictions: by the dispatcher.
        recomputed_tokens: thrown away by either, to be computed again.
        busy: in each second, the share of the time in which engines were at work.
        kv: in each second, the share of their KV in use.
        service: client -> weighted tokens in each second, up to its last token.
    """

    served: list[Served]
    ended_at: float
    preemptions: int
    evictions: int
    recomputed_tokens: int
    busy: list[float]
    kv: list[float]
    service: dict[str, list[float]]


class Admission(Protocol):
    """What stands before the dispatcher and may refuse."""

    def refusal(self, id: int, arrival: Arrival, asked: int, now: float) -> str:
        """Returns why a request is not let in, or nothing, and counts it as let in."""
        ...

    def ended(self, id: int, arrival: Arrival, generated: int, now: float) -> None:
        """Hears that a request that was let in has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What surrounds the dispatcher.

    Attributes:
        shape: of each engine.
        workers: how many there are.
        delay_s: from dispatcher to worker, and back.
        max_tokens: what a request asks for unless it says itself; cut to what fits the model.
        until_s: when the run is cut; None to serve all that comes.
    """

    shape: EngineShape = field(default_factory=EngineShape)
    workers: int = 1
    delay_s: float = 0.005
    max_tokens: int = 1_024
    until_s: float | None = None

    @property
    def most_tokens(self) -> int:
        """The most that a request may come to, prompt and max_tokens together."""
        return min(self.shape.max_model_len, self.shape.blocks * self.shape.block_tokens)

    def asked(self, arrival: Arrival) -> int:
        """Returns the max_tokens that a request names."""
        return max(1, min(arrival.max_tokens or self.max_tokens, self.shape.max_model_len - arrival.prompt))


@dataclass(slots=True, eq=False)
class _Worker:
    index: int
    engine: Engine
    inbox: list[Start | Evict] = field(default_factory=list)
    stepping: bool = False
    received: int = 0
    handed_over: list[tuple[int, int]] = field(default_factory=list)
    sequences: dict[int, engines.Sequence] = field(default_factory=dict)


class Simulation:
    """One run of one dispatcher on one workload.

    Args:
        arrivals: in order of time.
        dispatcher: a fresh one.
        setting: the defaults by default.
        admission: everybody is let in by default.
        progress: called ten times in a simulated second with the time and how many requests have ended.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        dispatcher: Dispatcher,
        setting: Setting | None = None,
        *,
        admission: Admission | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        self._setting = setting or Setting()
        self._dispatcher = dispatcher
        self._admission = admission
        self._progress = progress
        self._workers = [_Worker(index, Engine(self._setting.shape)) for index in range(self._setting.workers)]
        self._served = [Served(arrival, self._setting.asked(arrival)) for arrival in arrivals]
        self._service: dict[str, list[float]] = {arrival.client: [] for arrival in arrivals}
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._told = False
        self._ended = 0
        self._evictions = 0
        self._evicted_tokens = 0
        self._busy_s: list[float] = []
        self._kv_token_s: list[float] = []

    def run(self) -> Outcome:
        """Runs to the end and returns what came of it."""
        for id, served in enumerate(self._served):
            self._at(served.arrival.at, self._arrive, id)
        self._at(0.0, self._remind, None)
        events, until = self._events, self._setting.until_s
        while self._ended < len(self._served):
            if until is not None and events[0][0] >= until:
                self._now = until
                break
            self._now, _, handle, argument = heapq.heappop(events)
            handle(argument)
            if self._told and events[0][0] > self._now:
                self._told = False
                self._carry_out()
        return self._outcome()

    def _at(self, when: float, handle: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), handle, argument))

    def _outcome(self) -> Outcome:
        engines = [worker.engine for worker in self._workers]
        kv_tokens = self._setting.shape.kv_tokens * len(engines)
        return Outcome(
            served=self._served,
            ended_at=self._now,
            preemptions=sum(engine.preemptions for engine in engines),
            evictions=self._evictions,
            recomputed_tokens=sum(engine.recomputed_tokens for engine in engines) + self._evicted_tokens,
            busy=[seconds / len(engines) for seconds in self._busy_s],
            kv=[token_seconds / kv_tokens for token_seconds in self._kv_token_s],
            service=self._service,
        )

    # At the dispatcher.

    def _arrive(self, id: int) -> None:
        served = self._served[id]
        arrival = served.arrival
        if arrival.prompt + served.asked > self._setting.most_tokens:
            served.refusal = TOO_LARGE
        elif self._admission is not None:
            served.refusal = self._admission.refusal(id, arrival, served.asked, self._now)
        if served.refusal:
            self._ended += 1
        else:
            self._dispatcher.submit(Ask(id, arrival.client, arrival.prompt, served.asked), self._now)
            self._told = True

    def _hear(self, report: Report) -> None:
        for id, _ in report.finished:
            self._end(id)
        self._dispatcher.reported(report, self._now)
        self._told = True

    def _remind(self, _: None) -> None:
        self._told = True
        self._at(self._now + TICK_S, self._remind, None)
        if self._progress is not None:
            self._progress(self._now, self._ended)

    def _carry_out(self) -> None:
        orders = self._dispatcher.tick(self._now)
        arrives = self._now + self._setting.delay_s
        for start in orders.starts:
            served = self._served[start.id]
            if served.started_at is None:
                served.started_at = self._now
            self._at(arrives, self._receive, start)
        for eviction in orders.evictions:
            self._at(arrives, self._receive, eviction)
        for refusal in orders.refusals:
            self._served[refusal.id].refusal = refusal.reason
            self._end(refusal.id)

    def _end(self, id: int) -> None:
        self._ended += 1
        if self._admission is not None:
            served = self._served[id]
            self._admission.ended(id, served.arrival, served.generated, self._now)

    # At a worker.

    def _receive(self, order: Start | Evict) -> None:
        worker = self._workers[order.worker]
        worker.inbox.append(order)
        if not worker.stepping:
            self._begin_step(worker)

    def _begin_step(self, worker: _Worker) -> None:
        for order in worker.inbox:
            if isinstance(order, Start):
                self._start(worker, order)
            else:
                self._evict(worker, order)
        worker.inbox.clear()
        took = worker.engine.begin()
        worker.stepping = took is not None
        if took is not None:
            self._count_load(worker.engine.kv_tokens_used, took)
            self._at(self._now + took, self._end_step, worker)
        elif worker.handed_over:
            self._report(worker, Report(worker.index))

    def _count_load(self, kv_tokens: int, took: float) -> None:
        """Adds a step that begins now to the seconds in which it falls, until the run is cut."""
        begin, end = self._now, self._now + took
        if self._setting.until_s is not None:
            end = min(end, self._setting.until_s)
        while begin < end:
            second = int(begin)
            if len(self._busy_s) <= second:
                more = second + 1 - len(self._busy_s)
                self._busy_s += [0.0] * more
                self._kv_token_s += [0.0] * more
            part = min(end, second + 1) - begin
            self._busy_s[second] += part
            self._kv_token_s[second] += part * kv_tokens
            begin += part

    def _start(self, worker: _Worker, order: Start) -> None:
        served = self._served[order.id]
        sequence = engines.Sequence(
            id=order.id,
            prompt=served.arrival.prompt + served.generated,
            output=min(served.arrival.output, served.asked) - served.generated,
            priority=order.priority,
        )
        worker.received += 1
        worker.sequences[order.id] = sequence
        worker.engine.add(sequence)

    def _evict(self, worker: _Worker, order: Evict) -> None:
        sequence = worker.sequences.pop(order.id, None)
        if sequence is None:
            return  # it finished meanwhile
        served = self._served[order.id]
        self._evictions += 1
        self._evicted_tokens += sequence.computed
        served.evictions += 1
        worker.engine.abort(sequence)
        worker.handed_over.append((order.id, served.generated))

    def _end_step(self, worker: _Worker) -> None:
        step = worker.engine.complete()
        report = Report(worker.index)
        second = int(self._now)
        for sequence in step.produced:
            served = self._served[sequence.id]
            tokens = OUTPUT_WEIGHT
            if served.first_token_at is None:
                served.first_token_at = self._now
                tokens += INPUT_WEIGHT * served.arrival.prompt
            served.generated += 1
            service = self._service[served.arrival.client]
            if len(service) <= second:
                service.extend([0.0] * (second + 1 - len(service)))
            service[second] += tokens
            report.progress.append((sequence.id, served.generated))
        for sequence in step.finished:
            del worker.sequences[sequence.id]
            served = self._served[sequence.id]
            served.finished_at = self._now
            report.finished.append((sequence.id, served.generated))
        self._report(worker, report)
        self._begin_step(worker)

    def _report(self, worker: _Worker, report: Report) -> None:
        engine = worker.engine
        report.handed_over, worker.handed_over = worker.handed_over, []
        report.received = worker.received
        report.running, report.waiting = len(engine.running), engine.waiting
        report.kv_tokens_used, report.preemptions = engine.kv_tokens_used, engine.preemptions
        self._at(self._now + self._setting.delay_s, self._hear, report)
