"""Measures vLLM's steps and finds out who was in them.

vLLM reports each step to a stat logger: how many sequences computed their prompt in it and how many decoded, but not which.
Whoever yielded a token was in it. A prompt that is computed in several chunks yields nothing until the last; vLLM goes through
prompts by priority and arrival and begins none before those that it has begun, so the first ones without output are those.
An attempt that has left since the step before fills what is missing in the count: the step was under way.
"""

import time
from collections.abc import Callable
from itertools import count
from typing import Any


class StepRecorder:
    """A stat logger of vLLM (by shape, since its base class needs vllm), and the engine's memory of who is where.

    `record` comes first, then `yielded` for each output of the step, then `take`.

    Attributes:
        kv_usage: share of the KV cache in use after the last step, 0 to 1.
        preemptions: since the start.
    """

    def __init__(self, reported: Callable[[], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        """`reported` is called when there is a step to take."""
        self.kv_usage = 0.0
        self.preemptions = 0
        self._reported = reported
        self._monotonic = monotonic
        self._arrivals = count()
        self._inside: set[str] = set()  # every attempt in the engine
        self._prompts: dict[str, tuple[int, int]] = {}  # those without output, with (priority, order of arrival)
        self._begun: set[str] = set()  # those of _prompts that have been in a step
        self._leaving: list[str] = []  # left since the last report
        self._ended_at = 0.0  # of the last step, or when work came to an idle engine
        # Of the steps that are to be taken:
        self._seconds = 0.0
        self._prefilling = 0
        self._sequences = 0
        self._gone: list[str] = []
        self._first_outputs = 0
        self._outputs: dict[str, None] = {}

    @property
    def waiting(self) -> int:
        """Attempts that have not been in a step."""
        return len(self._prompts) - len(self._begun)

    @property
    def running(self) -> int:
        """Attempts that have."""
        return len(self._inside) - self.waiting

    def added(self, attempt_id: str, priority: int) -> None:
        """An attempt goes to the engine."""
        if not self._inside:
            self._ended_at = max(self._ended_at, self._monotonic())
        self._inside.add(attempt_id)
        self._prompts[attempt_id] = (priority, next(self._arrivals))

    def yielded(self, attempt_id: str) -> None:
        """An output of an attempt has come."""
        self._outputs[attempt_id] = None
        if self._prompts.pop(attempt_id, None) is not None:
            self._begun.discard(attempt_id)
            self._first_outputs += 1

    def left(self, attempt_id: str) -> None:
        """An attempt has ended or was aborted."""
        self._inside.discard(attempt_id)
        self._prompts.pop(attempt_id, None)
        self._begun.discard(attempt_id)
        self._leaving.append(attempt_id)
        if not self._inside:
            self.kv_usage = 0.0

    def take(self) -> tuple[float, float, list[str]]:
        """Returns when the last step began and ended, and its participants.

        Steps that were not taken in time count as one, as long as all of them.
        """
        in_chunks = sorted(self._prompts, key=lambda name: (name not in self._begun, self._prompts[name]))
        in_chunks = in_chunks[: max(0, self._prefilling - self._first_outputs)]
        self._begun.update(in_chunks)
        participants = [*self._outputs, *in_chunks]
        missing = max(0, self._sequences - len(participants))
        participants += [name for name in self._gone if name not in self._outputs][:missing]
        started_at = self._ended_at - self._seconds
        self._seconds, self._prefilling, self._sequences, self._first_outputs = 0.0, 0, 0, 0
        self._gone, self._outputs = [], {}
        return started_at, self._ended_at, participants

    # What vLLM calls.

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """A step has ended."""
        now = self._monotonic()
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is None:
            return
        self.kv_usage = scheduler_stats.kv_cache_usage if self._inside else 0.0
        details = scheduler_stats.iteration_details
        if details is not None:  # else nothing was computed
            self._seconds += now - self._ended_at
            self._prefilling = max(self._prefilling, details.num_ctx_requests)
            self._sequences = max(self._sequences, details.num_ctx_requests + details.num_generation_requests)
            self._gone, self._leaving = self._leaving, []
            self._reported()
        self._ended_at = now

    def log_engine_initialized(self) -> None:
        """Nothing to log."""

    def log(self) -> None:
        """Nothing to log."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """The engine never sleeps."""
