"""What the client takes and gives, as values. Times are in seconds, money in nano-USD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


Prompt = str | Sequence[Message]


class Options(TypedDict, total=False):
    """What a caller may say of a request, all of it optional.

    Attributes:
        model: a name from `list_models`; may be left out where there is only one.
        max_tokens: the most tokens to generate; the model's own default otherwise.
        min_tokens: the fewest tokens before the answer may end by itself.
        temperature: 0 (greedy) to 2; 1 otherwise.
        top_p: above 0, at most 1; 1 otherwise.
        top_k: draw from so many of the likeliest tokens; from all for 0, and otherwise.
        min_p: 0 to 1; the least probability of a token, relative to the likeliest; 0 otherwise.
        seed: makes sampling repeatable; 0 to 2^64 - 1.
        stop: strings that end the answer and are no part of it; a single string stands for itself.
        stop_token_ids: tokens that end the answer.
        ignore_eos: go on to max_tokens past the model's own end, for load tests.
        presence_penalty, frequency_penalty: -2 to 2; 0 otherwise.
        repetition_penalty: above 0, at most 2; 1 otherwise.
        adapter: one of the tenant's; its default otherwise.
        client_request_id: the caller's own name for the request, at most 128 bytes.
        labels: the caller's own dimensions for its usage report, at most 8.
        least_max_tokens: max_tokens may be lowered to it when too much waits; not at all otherwise.
        queue_timeout: the longest wait for a worker in seconds; up to the call's deadline otherwise.
    """

    model: str
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    adapter: str
    client_request_id: str
    labels: Mapping[str, str]
    least_max_tokens: int
    queue_timeout: float


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of a request; `cached` of the prompt's came from the prefix cache."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; `trace_id` is empty when tracing is off."""

    request_id: str
    model: str
    prompt_tokens: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer.

    Attributes:
        index: which of the answers, from 0.
        position: that of the first token here in its answer, from 0.
        text: may be empty while a character is incomplete.
        token_ids: the tokens.
    """

    index: int
    position: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The request ended.

    Attributes:
        reasons: why, for each answer: stop, length, cancelled, error or budget.
        usage: tokens of all answers together.
        time_to_first_token: from admission, in seconds.
        queue_time: the part of it spent waiting for a worker, in seconds.
        shortened: whether max_tokens was lowered to least_max_tokens.
    """

    reasons: tuple[str, ...]
    usage: TokenUsage
    time_to_first_token: float
    queue_time: float
    shortened: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer and why it ended: stop, length, cancelled, error or budget."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `trace_id` is empty when tracing is off, `shortened` as in `Finished`."""

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    usage: TokenUsage
    trace_id: str
    shortened: bool

    @property
    def text(self) -> str:
        """The text of the first choice, which most often is the only one."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How large a prompt is, and how many tokens more the model's context has room for."""

    prompt_tokens: int
    remaining_context: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the key may use."""

    name: str
    context_tokens: int
    default_max_tokens: int
    adapters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """One row of the ledger: what one execution of a request used and cost.

    Attributes:
        position: the row's place in the ledger of all tenants, from 1; 0 in what a tenant is shown.
        corrects: the position of the row that this one corrects; 0 for an original, and in what a tenant is shown.
        correction: whether the row corrects an earlier one of the same request and attempt, as few do.
        finished_at: seconds since the epoch.
        prompt_tokens: those that the row bills, as all counts here; negative in a correction that takes back.
        gpu_seconds: as measured, recomputation left out.
        time_to_first_token: seconds; None when no token came.
        outcome: completed, cancelled, failed, handed_over, lost or budget_stopped.
    """

    position: int
    corrects: int
    correction: bool
    request_id: str
    attempt: int
    tenant: str
    key_id: str
    plan: str
    model: str
    outcome: str
    finished_at: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    gpu_seconds: float
    time_to_first_token: float | None
    cost_nano_usd: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class UsagePage:
    """A run of ledger rows, and the cursor that resumes after them."""

    entries: tuple[UsageEntry, ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """A sum over ledger rows; `group` has the values of the dimensions asked for, in their order."""

    group: tuple[str, ...]
    requests: int
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    gpu_seconds: float
    cost_nano_usd: int
