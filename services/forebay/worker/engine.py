"""The engine port: what the worker asks of whatever computes tokens.

`vllm_engine` runs a real model; `simulated_engine` is the port's in-memory twin, deterministic and with a clock that
can be stepped by hand. All of it happens on one event loop; nothing here is thread-safe.

An attempt lives from `add` to the first of: an output with a `finish`, `abort`, `close`. The engine forgets it then.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forebay.errors import Code, FieldViolation, MeshError


class FinishReason(enum.Enum):
    """Why an attempt ended."""

    STOP = "stop"  # an end-of-sequence token, a stop string or a stop token
    LENGTH = "length"  # max_tokens or the model's context was reached
    CANCELLED = "cancelled"  # the engine gave it up by itself; an `abort` is silent
    ERROR = "error"  # the engine failed


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine holds at most."""

    kv_tokens: int  # tokens that the KV cache holds
    block_tokens: int  # tokens per KV block
    max_num_seqs: int  # requests in one step
    max_num_batched_tokens: int  # tokens computed in one step
    max_model_len: int  # prompt and completion of one request
    max_adapters: int  # adapters held at a time; 0 when the engine takes none


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, with every default resolved."""

    max_tokens: int  # counts from attempt 1 on, delivered tokens included
    min_tokens: int
    temperature: float  # 0 is greedy
    top_p: float
    top_k: int  # 0 for all
    min_p: float
    seed: int  # of attempt 1, unsigned 64 bits; a continuation carries the same
    stop: tuple[str, ...]  # not part of the text
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt: a prompt, or a prompt and what earlier attempts delivered of its completion."""

    attempt_id: str  # "<request_id>/<attempt>"
    prompt_token_ids: Sequence[int]
    delivered_token_ids: Sequence[int]  # empty for attempt 1
    held_text: str  # text of delivered_token_ids that the client has not been sent
    sampling: Sampling
    cache_salt: str  # requests with different salts never share a prefix-cache block
    priority: int  # lower runs first
    adapter: str  # empty for the bare model


@dataclass(slots=True)
class Output:
    """What one tick yielded for one attempt.

    Of a character that is not complete yet nothing is in `text` or `held_text`; a continuation finds it in the tokens.
    """

    attempt_id: str
    token_ids: list[int]  # new ones, in order; a stop token that ended the attempt is the last
    text: str  # new and to be delivered
    held_text: str  # known but held back after this output: the possible beginning of a stop string
    completion_tokens: int  # in all, delivered_token_ids included
    cached_tokens: int  # of prompt and delivered tokens, taken from the prefix cache
    finish: FinishReason | None = None  # set in the attempt's last output, and only there
    error: str = ""  # what was wrong, when finish is ERROR; without prompt text


@dataclass(slots=True)
class Step:
    """What the engine did in one tick: one step, or several that were gathered.

    The time of a step belongs to its participants: the sum of `ended_at - started_at` over all steps is the engine's
    busy time, and steps do not overlap. An attempt's first step as a participant ends its queueing; it is a participant
    of prefill steps that yield no output for it, too.
    """

    index: int  # grows by one with each Step
    started_at: float  # monotonic seconds
    ended_at: float
    participants: Sequence[str]  # ids of the attempts computed in it; aborted ones may be among them
    outputs: list[Output] = field(default_factory=list)


@dataclass(slots=True)
class EngineState:
    """An engine's load now."""

    running: int  # attempts being computed
    waiting: int  # attempts in the engine's own queue
    kv_tokens_used: int
    preemptions: int  # since the start
    healthy: bool  # False while the engine cannot serve
    adapters: tuple[str, ...] = ()  # loaded now


Sink = Callable[[Step], None]


def check_request(request: EngineRequest, capacity: Capacity, vocabulary_tokens: int) -> None:
    """Raises MeshError INVALID_ARGUMENT, naming every field at fault, when the request can never run."""
    sampling, prompt, delivered = request.sampling, request.prompt_token_ids, request.delivered_token_ids
    token_ids = [0, *prompt, *delivered, *sampling.stop_token_ids]
    rules = {
        "prompt_token_ids": (
            len(prompt) >= 1 and len(prompt) + len(delivered) < capacity.max_model_len,
            f"1 token up to the {capacity.max_model_len} of the context, with one left to generate",
        ),
        "token_ids": (
            min(token_ids) >= 0 and max(token_ids) < vocabulary_tokens,
            f"ids from 0 up to the {vocabulary_tokens} of the vocabulary",
        ),
        "max_tokens": (sampling.max_tokens > len(delivered), "at least one more than were delivered"),
        "min_tokens": (0 <= sampling.min_tokens <= sampling.max_tokens, "0 to max_tokens"),
        "temperature": (0 <= sampling.temperature <= 2, "0 to 2"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, up to 1"),
        "top_k": (sampling.top_k >= 0, "0 for all, or a number of candidates"),
        "min_p": (0 <= sampling.min_p <= 1, "0 to 1"),
        "seed": (0 <= sampling.seed < 1 << 64, "unsigned 64 bits"),
        "stop": (all(sampling.stop), "no empty string"),
        "presence_penalty": (-2 <= sampling.presence_penalty <= 2, "-2 to 2"),
        "frequency_penalty": (-2 <= sampling.frequency_penalty <= 2, "-2 to 2"),
        "repetition_penalty": (0 < sampling.repetition_penalty <= 2, "above 0, up to 2"),
        "adapter": (not request.adapter or capacity.max_adapters > 0, "empty: this engine takes no adapters"),
    }
    violations = [FieldViolation(name, rule) for name, (holds, rule) in rules.items() if not holds]
    if violations:
        fields = ", ".join(violation.field for violation in violations)
        raise MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", f"not possible: {fields}", field_violations=violations)


class Engine(Protocol):
    """Computes tokens for attempts, many at once."""

    kind: str  # "vllm" or "simulated"
    window_tokens: int  # how far a stream may run ahead of `delivered`; 0 for no bound, then nobody need call it

    @property
    def capacity(self) -> Capacity:
        """What it holds; known once it has started."""
        ...

    async def start(self, sink: Sink) -> None:
        """Loads the model and begins to serve; `sink` is called on the event loop, once per tick with its outputs."""
        ...

    def add(self, request: EngineRequest) -> None:
        """Queues an attempt; an id is added once.

        Raises MeshError: INVALID_ARGUMENT when it can never run, UNAVAILABLE when the engine is dead.
        """
        ...

    def abort(self, attempt_id: str) -> None:
        """Ends an attempt, or does nothing when it is unknown.

        No output for it follows, and no step starts for it (in vLLM at most one more, reported without its output).
        """
        ...

    def delivered(self, attempt_id: str, tokens: int) -> None:
        """Says that `tokens` of this attempt (not of earlier ones) have reached the client."""
        ...

    def state(self) -> EngineState:
        """The load now."""
        ...

    async def close(self) -> None:
        """Gives up all attempts without outputs, and the model; bounded in time."""
        ...
