"""Whether a request is one that can be answered: every field within its bound, all violations named at once."""

from __future__ import annotations

import math
from collections.abc import Iterator

from forebay.errors import Code, FieldViolation, MeshError
from forebay.router.domain.ask import Ask, Chat, LongPrompt, ModelCard, Prompt, Sampling, Text, TokenIds
from forebay.words import size

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 1024
MAX_CLIENT_REQUEST_ID_BYTES = 128
MAX_LABELS = 8
MAX_LABEL_BYTES = 64
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20
MAX_N = 16
MAX_SEED = 2**64 - 1
# An error travels in the trailers of its call, whose clients take 8 KiB of them and no more.
MAX_VIOLATIONS = 16
_NO_WAY_ROUND = (
    "cannot be used by this tenant, because it has a system prompt, which only a chat begins with; send a chat"
)
# What a conversation of 1,024 messages takes beside their content: roles, and the sizes of fields.
MAX_FRAMING_BYTES = 64 << 10
_LONGEST_ID_BYTES = 5


def check_ask(
    ask: Ask, model: ModelCard, vocabulary: int, system_prompt: bool, max_prompt_bytes: int
) -> Prompt | LongPrompt:
    """Returns the prompt of a request that is well formed and that this build can answer.

    Of a long prompt the size alone is checked; the rest is where it is read, by `check_prompt`.

    Args:
        ask: the request.
        model: the model it resolved to.
        vocabulary: the number of the model's token ids.
        system_prompt: whether the tenant has one, which plain text and token ids would go round.
        max_prompt_bytes: the most text that is tokenised for one request.

    Raises:
        MeshError: INVALID_ARGUMENT with a violation for every wrong field, of many for the first; UNIMPLEMENTED for a feature
            that is still to come.
    """
    violations = [
        *_prompt(ask.prompt, model, vocabulary, system_prompt, max_prompt_bytes),
        *_sampling(ask.sampling, model, vocabulary),
        *_labels(ask),
    ]
    _raise_if_any(violations)
    feature = _unsupported(ask.sampling)
    if feature is not None:
        raise MeshError(Code.UNIMPLEMENTED, "FEATURE_NOT_OFFERED", f"{feature} is not offered yet; leave it unset")
    assert ask.prompt is not None
    return ask.prompt


def check_prompt(
    prompt: Prompt | LongPrompt | None, model: ModelCard, vocabulary: int, system_prompt: bool, max_prompt_bytes: int
) -> Prompt | LongPrompt:
    """Returns a prompt that is well formed; arguments and errors as of `check_ask`."""
    _raise_if_any(list(_prompt(prompt, model, vocabulary, system_prompt, max_prompt_bytes)))
    assert prompt is not None
    return prompt


def completion_bound(prompt_tokens: int, sampling: Sampling, model: ModelCard, least_max_tokens: int = 0) -> int:
    """Returns the most tokens that may be generated for a prompt of this size: what is asked for, or the default as it fits.

    Raises:
        MeshError: INVALID_ARGUMENT when prompt and completion do not fit into the model's context, or bounds contradict.
    """
    room = model.context_tokens - prompt_tokens
    if room < 1:
        raise _invalid(
            FieldViolation(
                "prompt",
                f"has {prompt_tokens:,} tokens, and the model's context {model.context_tokens:,} for prompt and answer; "
                "shorten it",
            )
        )
    bound = sampling.max_tokens if sampling.max_tokens is not None else min(model.default_max_tokens, room)
    if bound > room:
        raise _invalid(
            FieldViolation(
                "sampling.max_tokens",
                f"is {bound:,}, and a prompt of {prompt_tokens:,} tokens leaves room for {room:,}; lower one of them",
            )
        )
    if sampling.min_tokens > bound:
        raise _invalid(
            FieldViolation(
                "sampling.min_tokens", f"is {sampling.min_tokens:,}; it must be at most max_tokens, {bound:,}"
            )
        )
    if least_max_tokens and not max(1, sampling.min_tokens) <= least_max_tokens <= bound:
        raise _invalid(
            FieldViolation(
                "least_max_tokens",
                f"is {least_max_tokens:,}; it must be 0, or from min_tokens up to max_tokens, {bound:,}",
            )
        )
    return bound


def _prompt(
    prompt: Prompt | LongPrompt | None, model: ModelCard, vocabulary: int, system_prompt: bool, max_bytes: int
) -> Iterator[FieldViolation]:
    match prompt:
        case LongPrompt(data):
            most = max(max_bytes, _LONGEST_ID_BYTES * model.context_tokens) + MAX_FRAMING_BYTES
            if len(data) > most:
                yield FieldViolation("prompt", f"must have at most {size(max_bytes)} of text")
        case None:
            yield FieldViolation("prompt", "is missing; give a chat, a text or tokens")
        case Chat(messages):
            if not 1 <= len(messages) <= MAX_MESSAGES:
                yield FieldViolation("prompt.chat.messages", f"must hold 1 to {MAX_MESSAGES:,} messages")
            for number, message in enumerate(messages[:MAX_MESSAGES]):
                if message.role not in ROLES:
                    yield FieldViolation(f"prompt.chat.messages[{number}].role", f"must be one of {', '.join(ROLES)}")
            if sum(len(message.content.encode()) for message in messages) > max_bytes:
                yield FieldViolation("prompt.chat.messages", f"must have at most {size(max_bytes)} of content together")
        case Text(text):
            if system_prompt:
                yield FieldViolation("prompt.text", _NO_WAY_ROUND)
            if not text:
                yield FieldViolation("prompt.text", "must not be empty")
            if len(text.encode()) > max_bytes:
                yield FieldViolation("prompt.text", f"must have at most {size(max_bytes)}")
        case TokenIds(ids):
            if system_prompt:
                yield FieldViolation("prompt.tokens", _NO_WAY_ROUND)
            if not 1 <= len(ids) <= model.context_tokens:
                yield FieldViolation("prompt.tokens.ids", f"must hold 1 to {model.context_tokens:,} ids")
            elif max(ids) >= vocabulary:
                yield FieldViolation(
                    "prompt.tokens.ids", f"must each be at most {vocabulary - 1:,}, the model's last token id"
                )


def _sampling(sampling: Sampling, model: ModelCard, vocabulary: int) -> Iterator[FieldViolation]:
    yield from _within("max_tokens", sampling.max_tokens, 1, model.context_tokens)
    yield from _within("min_tokens", sampling.min_tokens, 0, model.context_tokens)
    yield from _within("temperature", sampling.temperature, 0, 2)
    yield from _within("top_p", sampling.top_p, 0, 1, above=True)
    yield from _within("top_k", sampling.top_k, 0, vocabulary)
    yield from _within("min_p", sampling.min_p, 0, 1)
    yield from _within("seed", sampling.seed, 0, MAX_SEED)
    yield from _within("presence_penalty", sampling.presence_penalty, -2, 2)
    yield from _within("frequency_penalty", sampling.frequency_penalty, -2, 2)
    yield from _within("repetition_penalty", sampling.repetition_penalty, 0, 2, above=True)
    yield from _within("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    yield from _within("n", sampling.n, 1, MAX_N)
    if len(sampling.stop) > MAX_STOPS:
        yield FieldViolation("sampling.stop", f"must hold at most {MAX_STOPS} strings")
    for number, stop in enumerate(sampling.stop[:MAX_STOPS]):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            yield FieldViolation(f"sampling.stop[{number}]", f"must have 1 to {MAX_STOP_BYTES} bytes")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        yield FieldViolation("sampling.stop_token_ids", f"must hold at most {MAX_STOP_TOKEN_IDS} ids")
    if any(token >= vocabulary for token in sampling.stop_token_ids):
        yield FieldViolation(
            "sampling.stop_token_ids", f"must each be at most {vocabulary - 1:,}, the model's last token id"
        )


def _labels(ask: Ask) -> Iterator[FieldViolation]:
    if len(ask.client_request_id.encode()) > MAX_CLIENT_REQUEST_ID_BYTES:
        yield FieldViolation("client_request_id", f"must have at most {MAX_CLIENT_REQUEST_ID_BYTES} bytes")
    if len(ask.labels) > MAX_LABELS:
        yield FieldViolation("labels", f"must be at most {MAX_LABELS} labels")
    if any(len(part.encode()) > MAX_LABEL_BYTES for label in ask.labels.items() for part in label):
        yield FieldViolation("labels", f"must have names and values of at most {MAX_LABEL_BYTES} bytes")
    if ask.queue_timeout_s is not None and ask.queue_timeout_s <= 0:
        yield FieldViolation("queue_timeout", "must be above 0")


def _within(
    name: str, value: float | None, least: float, most: float, *, above: bool = False
) -> Iterator[FieldViolation]:
    """Yields a violation unless `value` is unset or within [least, most], or (least, most] when `above`."""
    if value is None or (math.isfinite(value) and (least < value if above else least <= value) and value <= most):
        return
    bounds = f"above {least:,} and at most {most:,}" if above else f"from {least:,} to {most:,}"
    yield FieldViolation(f"sampling.{name}", f"must be {bounds}, not {value:,}")


def _unsupported(sampling: Sampling) -> str | None:
    if sampling.n is not None and sampling.n > 1:
        return "sampling.n above 1"
    if sampling.logprobs is not None:
        return "sampling.logprobs"
    if sampling.structured_output:
        return "sampling.structured_output"
    return None


def _raise_if_any(violations: list[FieldViolation]) -> None:
    if violations:
        raise _invalid(*violations)


def _invalid(*violations: FieldViolation) -> MeshError:
    fields = "; ".join(f"{violation.field} {violation.description}" for violation in violations[:3])
    more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
    return MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", fields + more, field_violations=violations[:MAX_VIOLATIONS])
