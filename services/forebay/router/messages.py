"""The public contract to and from the router's own values."""

from __future__ import annotations

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2
from forebay.router.client import Finished, GatheredAnswer, Started
from forebay.router.domain.ask import Ask, LongPrompt, ModelCard, Prompt, Sampling
from forebay.router.domain.events import FinishReason, Usage
from forebay.router.domain.stream import Piece
from forebay.rpc.status import from_pb_duration, to_pb_duration


def from_pb_ask(options: router_pb2.GenerateOptions, prompt: Prompt | LongPrompt | None) -> Ask:
    """Returns what a client asks for, unchecked; the prompt comes beside its message."""
    return Ask(
        model=options.model,
        prompt=prompt,
        sampling=_from_pb_sampling(options.sampling),
        client_request_id=options.client_request_id,
        adapter=options.adapter,
        queue_timeout_s=from_pb_duration(options.queue_timeout) if options.HasField("queue_timeout") else None,
        least_max_tokens=options.least_max_tokens,
        labels=dict(options.labels),
    )


def _from_pb_sampling(message: common_pb2.Sampling) -> Sampling:
    return Sampling(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        min_p=message.min_p if message.HasField("min_p") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        presence_penalty=message.presence_penalty if message.HasField("presence_penalty") else None,
        frequency_penalty=message.frequency_penalty if message.HasField("frequency_penalty") else None,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else None,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        n=message.n if message.HasField("n") else None,
        structured_output=message.HasField("structured_output"),
    )


def to_pb_started(started: Started) -> router_pb2.StreamGenerateResponse:
    """Returns the first event of a stream."""
    return router_pb2.StreamGenerateResponse(
        started=router_pb2.StreamGenerateResponse.Started(
            request_id=started.request_id,
            model=started.model,
            prompt_tokens=started.prompt_tokens,
            trace_id=started.trace_id,
        )
    )


def to_pb_delta(piece: Piece) -> router_pb2.StreamGenerateResponse:
    """Returns an event with tokens; filled in place, which takes half the time, for it is done for every message."""
    event = router_pb2.StreamGenerateResponse()
    delta = event.delta
    delta.position, token_ids, delta.text = piece
    delta.token_ids.extend(token_ids)
    return event


def to_pb_finished(finished: Finished) -> router_pb2.StreamGenerateResponse:
    """Returns the last event of a stream."""
    first_token_s = finished.time_to_first_token_s
    return router_pb2.StreamGenerateResponse(
        finished=router_pb2.StreamGenerateResponse.Finished(
            finish_reasons=[to_pb_finish_reason(finished.reason)],
            usage=to_pb_usage(finished.usage),
            time_to_first_token=None if first_token_s is None else to_pb_duration(first_token_s),
            queue_time=to_pb_duration(finished.queue_time_s),
            shortened=finished.shortened,
        )
    )


def to_pb_answer(answer: GatheredAnswer) -> router_pb2.GenerateResponse:
    """Returns a whole answer in one message."""
    assert answer.start is not None
    assert answer.end is not None
    choice = router_pb2.GenerateResponse.Choice(
        text=answer.text, token_ids=answer.token_ids, finish_reason=to_pb_finish_reason(answer.end.reason)
    )
    return router_pb2.GenerateResponse(
        request_id=answer.start.request_id,
        model=answer.start.model,
        choices=[choice],
        usage=to_pb_usage(answer.end.usage),
        trace_id=answer.start.trace_id,
        shortened=answer.end.shortened,
    )


def to_pb_model(card: ModelCard) -> router_pb2.ListModelsResponse.Model:
    """Returns what the public knows of a model."""
    return router_pb2.ListModelsResponse.Model(
        name=card.name, context_tokens=card.context_tokens, default_max_tokens=card.default_max_tokens
    )


def to_pb_finish_reason(reason: FinishReason) -> common_pb2.FinishReason.ValueType:
    """Returns why an answer ended, in the contract's numbers."""
    return common_pb2.FinishReason.ValueType(reason.value)


def to_pb_usage(usage: Usage) -> common_pb2.TokenUsage:
    """Returns token counts."""
    return common_pb2.TokenUsage(
        prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens, completion_tokens=usage.completion_tokens
    )
