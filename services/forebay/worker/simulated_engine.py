"""An engine without a model: the port's in-memory twin, and the instrument for tests, benchmarks and capacity planning.

Its tokens are a function of seed and prefix, so whoever continues a stream elsewhere gets the same tokens and text;
temperature, top-p and penalties do not change what it says. It batches as vLLM does (`simulated_batch`).

A step takes the time of a cost model, divided by `speed`. Where it costs nothing, steps are as fast as Python goes: a tick
gathers several, and the loop runs between ticks. With `manual` nothing happens but in `step()`.
"""

import asyncio
import time
from collections.abc import Callable

from forebay.errors import Code, MeshError
from forebay.tasks import dismiss, watched
from forebay.worker import simulated_model
from forebay.worker.domain.step_cost import A10G, FREE, StepCost
from forebay.worker.engine import Capacity, EngineRequest, EngineState, Output, Sink, Step, check_request
from forebay.worker.simulated_batch import Plan, SimulatedBatch, plan_seconds

DEFAULT_CAPACITY = Capacity(
    kv_tokens=131_072,
    block_tokens=32,
    max_num_seqs=256,
    max_num_batched_tokens=2_048,
    max_model_len=8_192,
    max_adapters=4,
)
ADAPTER_LOAD_S = 0.05
_GATHERED_STEPS = 8  # in one tick, when steps take no time


class SimulatedEngine:
    """An `Engine`; see the module's text."""

    kind = "simulated"

    def __init__(
        self,
        capacity: Capacity = DEFAULT_CAPACITY,
        cost: StepCost = A10G,
        *,
        speed: float = 1.0,
        adapter_load_s: float = ADAPTER_LOAD_S,
        window_tokens: int = 0,
        manual: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares; `speed` above 1 makes steps, and loading an adapter, shorter than their costs say."""
        self.capacity = capacity
        self.window_tokens = window_tokens
        self._cost = cost
        self._speed = speed
        self._adapter_load_s = adapter_load_s
        self._adapter_loads = 0  # that steps have paid for
        self._manual = manual
        self._monotonic = monotonic
        self._batch = SimulatedBatch(capacity, window_tokens)
        self._steps = 0
        self._ended_at = 0.0  # of the last step
        self._healthy = False
        self._sink: Sink = lambda step: None
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self, sink: Sink) -> None:
        """Begins to serve."""
        self._sink = sink
        self._healthy = True
        if not self._manual:
            self._loop = watched(self._run(), "simulated engine")

    def add(self, request: EngineRequest) -> None:
        """Queues an attempt."""
        if not self._healthy:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_DEAD", "the engine does not serve")
        check_request(request, self.capacity, simulated_model.VOCABULARY_TOKENS)
        self._batch.add(request)
        self._wake.set()

    def abort(self, attempt_id: str) -> None:
        """Ends an attempt; the step that is being computed is its last."""
        self._batch.remove(attempt_id)
        self._wake.set()  # somebody who waits may fit now

    def delivered(self, attempt_id: str, tokens: int) -> None:
        """Lets the stream run further."""
        if self._batch.delivered(attempt_id, tokens):
            self._wake.set()

    def state(self) -> EngineState:
        """Returns the load now."""
        batch = self._batch
        return EngineState(
            batch.running, batch.waiting, batch.kv_tokens_used, batch.preemptions, self._healthy, batch.adapters
        )

    def fail(self, error: str) -> None:
        """Dies as a real engine does: it is unhealthy for good, and every attempt ends with an ERROR output."""
        self._healthy = False
        now = self._monotonic()
        self._emit(now, now, [], self._batch.fail(error))

    async def close(self) -> None:
        """Stops, and gives up all attempts."""
        self._healthy = False
        if self._loop is not None:
            dismiss(self._loop)
            await asyncio.wait([self._loop])
        self._batch.fail("closed")  # nobody hears of it

    def step(self) -> Step | None:
        """Computes one step now (`manual` only) and returns it; None when nothing can run."""
        plan = self._batch.plan(tokens=1)
        if not plan:
            return None
        started_at = max(self._monotonic(), self._ended_at)
        return self._complete(plan, started_at, started_at + self._seconds(plan))

    async def _run(self) -> None:
        tokens = _GATHERED_STEPS if self._cost == FREE else 1
        while True:
            plan = self._batch.plan(tokens)
            if not plan:
                self._wake.clear()
                await self._wake.wait()
                self._ended_at = self._monotonic()
                continue
            seconds = self._seconds(plan)
            # A late wake-up is made up for in the next step, and only there.
            started_at = max(self._ended_at, self._monotonic() - seconds)
            await asyncio.sleep(started_at + seconds - self._monotonic())
            self._complete(plan, started_at, started_at + seconds)

    def _seconds(self, plan: Plan) -> float:
        loads, self._adapter_loads = self._batch.adapter_loads - self._adapter_loads, self._batch.adapter_loads
        if self._cost == FREE:
            return 0.0
        return (plan_seconds(list(plan.values()), self._cost) + loads * self._adapter_load_s) / self._speed

    def _complete(self, plan: Plan, started_at: float, ended_at: float) -> Step:
        self._ended_at = ended_at
        return self._emit(started_at, ended_at, list(plan), self._batch.complete(plan))

    def _emit(self, started_at: float, ended_at: float, participants: list[str], outputs: list[Output]) -> Step:
        step = Step(self._steps, started_at, ended_at, participants, outputs)
        self._steps += 1
        self._sink(step)
        return step
