"""The port to one router: where an attempt's tokens and its end go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forebay.errors import MeshError
from forebay.worker.domain.attempt import Phases
from forebay.worker.domain.usage import Ending
from forebay.worker.engine import Output


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an attempt as its router hears it; token counts are those of the whole request."""

    ending: Ending
    error: MeshError | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    gpu_time_ns: int
    phases: Phases


class RouterStream(Protocol):
    """One router's session, seen from the worker.

    Nothing here waits or fails: what is said gathers until `flush`, and a session that broke meanwhile swallows it, because its
    end is told to the service on its own.
    """

    def output(self, ref: int, output: Output, finish: Finish | None) -> None:
        """Brings new tokens of one attempt; with `finish`, the last ones."""
        ...

    def finished(self, ref: int, finish: Finish) -> None:
        """Brings the end of an attempt that the engine had no more output for."""
        ...

    def refused(self, ref: int, error: MeshError) -> None:
        """Turns a payload away; it never reached the engine."""
        ...

    def handed_over(self, ref: int, reason: str) -> None:
        """Asks the router to go on elsewhere: DRAINING, EVICTED or ENGINE_FAILED."""
        ...

    def flush(self, step: int) -> None:
        """Sends what was said since the flush before, as of the engine's tick `step`."""
        ...
