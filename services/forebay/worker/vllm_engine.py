"""A real model: vLLM's AsyncLLM behind the engine port. The only module of the project that imports vllm.

vllm is imported when the engine starts, in a thread, because that takes a quarter of a minute. Importing this module only
sets the environment that vllm reads at its import.

What vLLM does here and what not:

- It draws the tokens and ends at end tokens, stop tokens and lengths. Text and stop strings are this module's, so that a
  stream can continue within a character or a stop string (see `answer_text`); a stop string ends the request by an abort,
  in the tick in which vLLM would have.
- Each attempt has a task that reads its `generate()`. All tasks that one message of the engine core wakes run in one tick
  of the loop; at its end their outputs go to the sink together.
- vLLM reports each step through a stat logger, without saying who was in it, and its own `elapsed_ms` leaves out the
  forward pass where the executor runs in the core's process. So a step lasts from the end of the one before, or from the
  arrival of work at an idle engine, until its report: these spans sum to the time in which the engine had work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from forebay.errors import Code, MeshError
from forebay.tasks import guarded
from forebay.telemetry.logs import get_logger
from forebay.worker.answer_text import AnswerText
from forebay.worker.domain.continuation import continuation_seed
from forebay.worker.engine import (
    Capacity,
    EngineRequest,
    EngineState,
    FinishReason,
    Output,
    Sampling,
    Sink,
    Step,
    check_request,
)
from forebay.worker.vllm_config import VllmConfig
from forebay.worker.vllm_steps import StepRecorder

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

for _name, _value in {
    "HF_HUB_OFFLINE": "1",  # models are directories here
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core is a process of its own still; vLLM's worker joins it
    "OMP_NUM_THREADS": "1",  # more were slower
    "VLLM_LOGGING_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(_name, _value)

_CLOSE_SECONDS = 5.0

log = get_logger("worker")

_FINISHES = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
}


def engine_arguments(model: str | Path, config: VllmConfig) -> AsyncEngineArgs:
    """Returns vLLM's arguments for a model's directory; imports vllm."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields: dict[str, Any] = {
        "model": str(model),
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "enable_logging_iteration_details": True,  # the counts of each step that StepRecorder needs
        "disable_log_stats": True,  # vLLM's own lines; loggers that are passed in still get the stats
        **config.model_dump(exclude={"engine_args"}, exclude_none=True),
        **config.engine_args,
    }
    return AsyncEngineArgs(**fields)


@dataclass(slots=True, eq=False)
class _Attempt:
    """One attempt in the engine."""

    request: EngineRequest
    text: AnswerText
    cached_tokens: int = 0
    task: asyncio.Task[None] | None = None


class VllmEngine:
    """An `Engine`; see the module's text."""

    kind = "vllm"
    window_tokens = 0  # vLLM cannot be held back

    def __init__(self, model: Path, config: VllmConfig) -> None:
        """Prepares; nothing is loaded yet."""
        self.capacity = Capacity(0, 1, 0, 0, 0, 0)
        self._model = model
        self._config = config
        self._steps = StepRecorder(self._gather)
        self._attempts: dict[str, _Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outputs: list[Output] = []  # of this tick
        self._gathering = False
        self._ticks = 0
        self._llm: AsyncLLM | None = None
        self._loading: asyncio.Task[None] | None = None
        self._started = False
        self._tokenizer: Tokenizer | None = None
        self._vocabulary_tokens = 0
        self._sink: Sink = lambda step: None

    async def start(self, sink: Sink) -> None:
        """Loads the model; half a minute on a CPU."""
        self._sink = sink
        self._tokenizer = Tokenizer.from_file(str(self._model / "tokenizer.json"))
        self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="vllm load")
        await asyncio.shield(self._loading)
        llm = self._llm
        assert llm is not None
        await llm.get_supported_tasks()  # cached by vLLM: from here on a request is on its way in one tick
        config = llm.vllm_config
        block = config.cache_config.block_size
        self.capacity = Capacity(
            kv_tokens=(config.cache_config.num_gpu_blocks - 1) * block,  # one block is vLLM's own
            block_tokens=block,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            max_model_len=config.model_config.max_model_len,
            max_adapters=0,
        )
        self._vocabulary_tokens = config.model_config.get_vocab_size()
        self._started = True

    def _load(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(self._model, self._config)
        # Not returned: vLLM keeps an exception of its import, with it this call's frames and what they return, and an
        # AsyncLLM that is still there when Python ends complains.
        self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda config, index=0: self._steps])

    def add(self, request: EngineRequest) -> None:
        """Queues an attempt."""
        if not self._healthy or self._tokenizer is None:
            raise MeshError(Code.UNAVAILABLE, "ENGINE_DEAD", "the engine does not serve")
        check_request(request, self.capacity, self._vocabulary_tokens)
        sampling, delivered = request.sampling, request.delivered_token_ids
        if delivered and (sampling.presence_penalty or sampling.frequency_penalty):
            # Delivered tokens are prompt to vLLM, and it penalises what it has generated only (rule P7).
            raise MeshError(Code.UNAVAILABLE, "CONTINUATION_UNSUPPORTED", "penalties cannot be continued")
        attempt = _Attempt(request, AnswerText(self._tokenizer, request))
        self._attempts[request.attempt_id] = attempt
        self._steps.added(request.attempt_id, request.priority)
        attempt.task = asyncio.create_task(self._consume(attempt), name=f"vllm {request.attempt_id}")
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)

    def abort(self, attempt_id: str) -> None:
        """Ends an attempt; vLLM hears of it in the next tick."""
        self._outputs = [output for output in self._outputs if output.attempt_id != attempt_id]
        attempt = self._forget(attempt_id)
        if attempt is not None and attempt.task is not None:
            attempt.task.cancel()

    def delivered(self, attempt_id: str, tokens: int) -> None:
        """Nothing: there is no window."""

    def state(self) -> EngineState:
        """Returns the load now."""
        kv_tokens_used = round(self._steps.kv_usage * self.capacity.kv_tokens)
        steps = self._steps
        return EngineState(steps.running, steps.waiting, kv_tokens_used, steps.preemptions, self._healthy)

    async def close(self) -> None:
        """Aborts everything first: vLLM takes 20 s to shut down with requests in flight, and 3 s without."""
        self._started = False
        for attempt_id in list(self._attempts):
            self.abort(attempt_id)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        if self._loading is not None:
            await asyncio.wait([self._loading])  # a thread cannot be broken off
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # else it logs the end of the engine core as an error
            await asyncio.to_thread(llm.shutdown, timeout=_CLOSE_SECONDS)

    @property
    def _healthy(self) -> bool:
        return self._started and self._llm is not None and not self._llm.errored

    def _forget(self, attempt_id: str) -> _Attempt | None:
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is not None:
            self._steps.left(attempt_id)
        return attempt

    # The way of one attempt's outputs: vLLM's stream, text, the tick's step.

    async def _consume(self, attempt: _Attempt) -> None:
        """Reads vLLM's stream of one attempt until it ends, it is stopped here, or it is aborted."""
        from vllm.inputs import tokens_input

        request, llm = attempt.request, self._llm
        assert llm is not None
        prompt = tokens_input(
            [*request.prompt_token_ids, *request.delivered_token_ids], cache_salt=request.cache_salt or None
        )
        parameters = _sampling_params(request.sampling, len(request.delivered_token_ids))
        stream = llm.generate(prompt, parameters, request.attempt_id, priority=request.priority)
        try:
            # Closing the stream aborts what it has not ended.
            async with contextlib.aclosing(stream):
                async for output in stream:
                    self._received(attempt, output)
                    if request.attempt_id not in self._attempts:
                        return
        except asyncio.CancelledError:
            # An abort that comes while vLLM sends the request on leaves it there; unknown ids do no harm.
            await llm.abort(request.attempt_id)
            raise
        except Exception as error:
            log.warning("vllm gave up an attempt", attempt_id=request.attempt_id, error=type(error).__name__)
            text, _ = attempt.text.end()
            self._put(attempt, [], text, FinishReason.ERROR, error=type(error).__name__)

    def _received(self, attempt: _Attempt, output: RequestOutput) -> None:
        """Takes what vLLM yields: one token, or several when this task was late."""
        completion = output.outputs[0]
        finish = _FINISHES.get(completion.finish_reason, FinishReason.ERROR) if completion.finish_reason else None
        token_ids = list(completion.token_ids)
        count, text, stopped = attempt.text.push(token_ids, ended=finish is FinishReason.STOP)
        if stopped:
            token_ids, finish = token_ids[:count], FinishReason.STOP
        elif finish is not None:
            rest, stopped = attempt.text.end()
            text, finish = text + rest, FinishReason.STOP if stopped else finish
        attempt.cached_tokens = output.num_cached_tokens or 0
        self._steps.yielded(attempt.request.attempt_id)
        self._put(attempt, token_ids, text, finish)

    def _put(
        self, attempt: _Attempt, token_ids: list[int], text: str, finish: FinishReason | None, error: str = ""
    ) -> None:
        """Adds to the tick's outputs; a `finish` ends the attempt."""
        if finish is not None:
            self._forget(attempt.request.attempt_id)
        self._outputs.append(
            Output(
                attempt_id=attempt.request.attempt_id,
                token_ids=token_ids,
                text=text,
                held_text=attempt.text.held,
                completion_tokens=attempt.text.position,
                cached_tokens=attempt.cached_tokens,
                finish=finish,
                error=error,
            )
        )
        self._gather()

    def _gather(self) -> None:
        """Sees to it that the tick's step is emitted, after all tasks that vLLM's message woke."""
        if not self._gathering:
            self._gathering = True
            asyncio.get_running_loop().call_soon(guarded(self._emit, "vllm outputs"))

    def _emit(self) -> None:
        self._gathering = False
        started_at, ended_at, participants = self._steps.take()
        outputs, self._outputs = self._outputs, []
        step = Step(self._ticks, started_at, ended_at, participants, outputs)
        self._ticks += 1
        self._sink(step)


def _sampling_params(sampling: Sampling, position: int) -> SamplingParams:
    """Returns vLLM's parameters for a stream that stands at `position`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens - position,
        min_tokens=max(0, sampling.min_tokens - position),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=continuation_seed(sampling.seed, position),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
