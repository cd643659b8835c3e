"""The ports' doubles for the worker's tests, and samples of what comes over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from opentelemetry.context import Context

from forebay.errors import MeshError
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.grant import Grant
from forebay.worker.domain.usage import Attribution, Outcome, Place, Trace, UsageEvent
from forebay.worker.engine import Capacity, EngineRequest, EngineState, FinishReason, Output, Sampling, Sink, Step
from forebay.worker.router_stream import Finish
from forebay.worker.scheduler_reports import Departure
from forebay.worker.start import Start

WORKER, INCARNATION, EPOCH = "worker-1", 7, 3

SAMPLING = Sampling(
    max_tokens=20,
    min_tokens=0,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=1,
    stop=(),
    stop_token_ids=(),
    ignore_eos=True,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
)


def attempt_id(number: int, attempt: int = 1) -> AttemptId:
    return AttemptId(f"{number:032x}", attempt)


def event(number: int, outcome: Outcome = Outcome.LOST, *, completion_to: int = 0) -> UsageEvent:
    attribution = Attribution("acme", "key", "basic", False, "bronze", "tiny", 0.5, "", {"team": "a\nb"})
    return UsageEvent(
        id=attempt_id(number),
        attribution=attribution,
        place=Place(WORKER, INCARNATION, "gold"),
        adapter="",
        prompt_tokens=10,
        cached_tokens=0,
        completion_from=0,
        completion_to=completion_to,
        recomputed_tokens=0,
        gpu_time_ns=completion_to,
        recomputed_gpu_time_ns=0,
        time_to_first_token=None,
        started_at=1.0,
        finished_at=2.0,
        outcome=outcome,
        trace=Trace(),
    )


def start(
    ref: int,
    tenant: str = "acme",
    *,
    attempt: int = 1,
    delivered: int = 0,
    remaining: float | None = None,
    **grant: object,
) -> Start:
    """A payload of 10 tokens that wants 20, with a grant that fits; its request's number is its ref."""
    good = Grant(
        id=attempt_id(ref, attempt),
        worker_id=WORKER,
        incarnation=INCARNATION,
        epoch=EPOCH,
        batch_id=1,
        tenant_id=tenant,
        adapter="",
        priority=0,
        prompt_tokens=10 + delivered,
        max_tokens=20,
        kv_tokens=30,
        expires_in=2.0,
    )
    return Start(
        ref=ref,
        grant=replace(good, **grant),  # type: ignore[arg-type]
        attribution=Attribution(tenant, "key", "basic", False, "bronze", "tiny", 0.5, "", {}),
        prompt_token_ids=list(range(10)),
        continues=attempt > 1,
        delivered_token_ids=list(range(delivered)),
        held_text="",
        completion_from=delivered,
        sampling=SAMPLING,
        remaining=remaining,
        trace=Context(),
    )


class HandEngine:
    """An engine that yields what the test says, and remembers what it was asked."""

    kind = "hand"
    window_tokens = 0
    capacity = Capacity(4096, 16, 8, 512, 1024, 0)

    def __init__(self) -> None:
        self.added: dict[str, EngineRequest] = {}
        self.aborted: list[str] = []
        self.acknowledged: list[tuple[str, int]] = []
        self.healthy = True
        self.refuse: MeshError | None = None
        self.steps = 0
        self._sink: Sink = lambda step: None
        self._tokens: dict[str, int] = {}

    async def start(self, sink: Sink) -> None:
        self._sink = sink

    def add(self, request: EngineRequest) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.added[request.attempt_id] = request
        self._tokens[request.attempt_id] = len(request.delivered_token_ids)

    def abort(self, attempt_id: str) -> None:
        self.aborted.append(attempt_id)

    def delivered(self, attempt_id: str, tokens: int) -> None:
        self.acknowledged.append((attempt_id, tokens))

    def state(self) -> EngineState:
        return EngineState(1, 0, 64, 0, self.healthy)

    async def close(self) -> None:
        pass

    def step(
        self,
        *ids: AttemptId,
        at: float = 0.0,
        seconds: float = 0.01,
        finish: FinishReason | None = None,
        tokens: int = 1,
    ) -> None:
        """Yields `tokens` tokens for each of `ids` in one step."""
        self.steps += 1
        outputs = []
        for name in map(str, ids):
            self._tokens[name] += tokens
            new = list(range(self._tokens[name] - tokens, self._tokens[name]))
            outputs.append(Output(name, new, "x" * tokens, "", self._tokens[name], 0, finish, "it broke"))
        self._sink(Step(self.steps, at, at + seconds, [str(id) for id in ids], outputs))


@dataclass(eq=False)
class RecordedStream:
    """A `RouterStream` that keeps what it is told: one list for each flush."""

    flushed: list[list[tuple[object, ...]]] = field(default_factory=list)
    _said: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def said(self) -> list[tuple[object, ...]]:
        return [item for flush in self.flushed for item in flush]

    def output(self, ref: int, output: Output, finish: Finish | None) -> None:
        self._said.append(("output", ref, list(output.token_ids), finish))

    def finished(self, ref: int, finish: Finish) -> None:
        self._said.append(("finished", ref, finish))

    def refused(self, ref: int, error: MeshError) -> None:
        self._said.append(("refused", ref, error.reason))

    def handed_over(self, ref: int, reason: str) -> None:
        self._said.append(("handed_over", ref, reason))

    def flush(self, step: int) -> None:
        if self._said:
            self.flushed.append(self._said)
            self._said = []


@dataclass
class RecordedReports:
    """A `SchedulerReports` that keeps what it is told."""

    departures: list[Departure] = field(default_factory=list)
    lapsed: list[AttemptId] = field(default_factory=list)
    drains: int = 0

    def departed(self, departure: Departure) -> None:
        self.departures.append(departure)

    def expired(self, id: AttemptId) -> None:
        self.lapsed.append(id)

    def draining(self) -> None:
        self.drains += 1

    def health(self) -> None: ...
