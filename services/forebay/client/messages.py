"""The client's values to and from the public contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.router.v1 import router_pb2
from forebay.client.model import (
    Answer,
    Choice,
    Delta,
    Finished,
    Model,
    Prompt,
    Started,
    TokenUsage,
    UsageEntry,
    UsageTotal,
)
from forebay.client.options import checked_options, checked_prompt, real, texts
from forebay.rpc.status import from_pb_duration, from_pb_timestamp, to_pb_duration

# Of the year 9999, where protobuf's times end.
_LAST_SECOND = 253_402_300_799
_SAMPLING = frozenset(common_pb2.Sampling.DESCRIPTOR.fields_by_name)


def to_pb_prompt(prompt: Prompt) -> router_pb2.Prompt:
    """Returns a conversation; a plain string is its only, the user's, turn.

    Raises:
        TypeError, ValueError: as of `checked_prompt`.
    """
    messages = [router_pb2.Chat.Message(role=turn.role, content=turn.content) for turn in checked_prompt(prompt)]
    return router_pb2.Prompt(chat=router_pb2.Chat(messages=messages))


def to_pb_options(prompt: Prompt, options: Mapping[str, Any]) -> router_pb2.GenerateOptions:
    """Returns what unary and streamed generation have in common.

    Raises:
        TypeError, ValueError: as of `checked_prompt` and `checked_options`.
    """
    given: Mapping[str, Any] = checked_options(options)
    queue_timeout = given.get("queue_timeout")
    return router_pb2.GenerateOptions(
        prompt=to_pb_prompt(prompt),
        sampling=common_pb2.Sampling(**{name: value for name, value in given.items() if name in _SAMPLING}),
        queue_timeout=None if queue_timeout is None else to_pb_duration(queue_timeout),
        **{
            name: given[name]
            for name in ("model", "client_request_id", "adapter", "labels", "least_max_tokens")
            if name in given
        },
    )


def from_pb_started(message: router_pb2.StreamGenerateResponse.Started) -> Started:
    """Returns a stream's first event."""
    return Started(message.request_id, message.model, message.prompt_tokens, message.trace_id)


def from_pb_delta(message: router_pb2.StreamGenerateResponse.Delta) -> Delta:
    """Returns a piece of an answer."""
    return Delta(message.index, message.position, message.text, tuple(message.token_ids))


def from_pb_finished(message: router_pb2.StreamGenerateResponse.Finished) -> Finished:
    """Returns a stream's last event."""
    return Finished(
        reasons=tuple(_finish_reason(reason) for reason in message.finish_reasons),
        usage=from_pb_token_usage(message.usage),
        time_to_first_token=from_pb_duration(message.time_to_first_token),
        queue_time=from_pb_duration(message.queue_time),
        shortened=message.shortened,
    )


def from_pb_answer(message: router_pb2.GenerateResponse) -> Answer:
    """Returns a whole answer."""
    return Answer(
        request_id=message.request_id,
        model=message.model,
        choices=tuple(
            Choice(choice.text, tuple(choice.token_ids), _finish_reason(choice.finish_reason))
            for choice in sorted(message.choices, key=lambda choice: choice.index)
        ),
        usage=from_pb_token_usage(message.usage),
        trace_id=message.trace_id,
        shortened=message.shortened,
    )


def from_pb_token_usage(message: common_pb2.TokenUsage) -> TokenUsage:
    """Returns counts of tokens."""
    return TokenUsage(message.prompt_tokens, message.cached_tokens, message.completion_tokens)


def from_pb_model(message: router_pb2.ListModelsResponse.Model) -> Model:
    """Returns a model."""
    return Model(message.name, message.context_tokens, message.default_max_tokens, tuple(message.adapters))


def from_pb_entry(message: metering_pb2.LedgerEntry) -> UsageEntry:
    """Returns a row of the ledger."""
    event = message.event
    first_token = event.time_to_first_token if event.HasField("time_to_first_token") else None
    return UsageEntry(
        position=message.position,
        corrects=message.corrects,
        correction=message.correction or message.corrects != 0,
        request_id=event.request_id,
        attempt=event.attempt,
        tenant=event.tenant_id,
        key_id=event.key_id,
        plan=event.plan,
        model=event.model,
        outcome=metering_pb2.Outcome.Name(event.outcome).removeprefix("OUTCOME_").lower(),
        finished_at=from_pb_timestamp(event.finished_at),
        prompt_tokens=message.billed_prompt_tokens,
        cached_tokens=event.cached_tokens,
        completion_tokens=message.billed_completion_tokens,
        gpu_seconds=from_pb_duration(event.gpu_time) - from_pb_duration(event.recomputed_gpu_time),
        time_to_first_token=None if first_token is None else from_pb_duration(first_token),
        cost_nano_usd=message.cost_nano_usd,
        trace_id=event.trace_id,
    )


def from_pb_total(message: metering_pb2.UsageTotal) -> UsageTotal:
    """Returns a sum over the ledger."""
    return UsageTotal(
        group=tuple(message.group),
        requests=message.requests,
        attempts=message.attempts,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_tokens=message.completion_tokens,
        gpu_seconds=from_pb_duration(message.gpu_time),
        cost_nano_usd=message.cost_nano_usd,
    )


def to_pb_filter(request_ids: str | Sequence[str] = (), since: float | None = None) -> metering_pb2.UsageFilter:
    """Returns which rows of the ledger are wanted: of these requests, or of all, that ended at `since` or later.

    Raises:
        TypeError: a request's id is no string, or `since` no number.
        ValueError: `since` is no time that the ledger can hold.
    """
    wanted = metering_pb2.UsageFilter(request_ids=texts("request_ids", request_ids))
    if since is not None:
        wanted.finished_from.FromNanoseconds(int(real("since", since, 0, _LAST_SECOND) * 1e9))
    return wanted


def to_pb_dimensions(names: str | Sequence[str]) -> list[metering_pb2.UsageDimension.ValueType]:
    """Returns dimensions by their names: tenant, key, model, day, outcome.

    Raises:
        TypeError: a name is no string.
        ValueError: a name is none of these, or comes twice.
    """
    names = texts("by", names)
    known = {
        name.removeprefix("USAGE_DIMENSION_").lower(): number
        for name, number in metering_pb2.UsageDimension.items()
        if number
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each dimension can be named once, not {', '.join(names)}")
    return [known[name] for name in names]


def _finish_reason(reason: common_pb2.FinishReason.ValueType) -> str:
    return common_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
