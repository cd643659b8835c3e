"""What a client asks for, as values; the fields and their bounds are those of the public contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, oldest turn first, to be rendered by the model's chat template."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, given to the model as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that the client has tokenised itself."""

    ids: Sequence[int]


Prompt = Chat | Text | TokenIds


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """A prompt as it came, which is read and checked where it is tokenised: in a process of its own.

    Attributes:
        data: the contract's message.
        is_chat: whether it is a conversation.
    """

    data: bytes
    is_chat: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; None takes the model's default.

    Attributes:
        logprobs, n, structured_output: known so that they can be refused by name; no engine serves them yet.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: int | None = None
    n: int | None = None
    structured_output: bool = False

    @property
    def penalised(self) -> bool:
        """Whether what was generated before changes how the next token is drawn."""
        neutral = ((self.presence_penalty, 0.0), (self.frequency_penalty, 0.0), (self.repetition_penalty, 1.0))
        return any(value is not None and value != rest for value, rest in neutral)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for generation.

    Attributes:
        model: empty takes the only one there is.
        prompt: None when the client sent none, which `violations` reports.
        queue_timeout_s: the longest wait for a worker; None for up to the deadline.
        least_max_tokens: what max_tokens may be lowered to when too much waits; 0 for not at all.
    """

    model: str
    prompt: Prompt | LongPrompt | None
    sampling: Sampling = Sampling()
    client_request_id: str = ""
    adapter: str = ""
    queue_timeout_s: float | None = None
    least_max_tokens: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the public knows of a model.

    Attributes:
        context_tokens: prompt and completion together.
        default_max_tokens: what max_tokens is when a request leaves it unset.
    """

    name: str
    context_tokens: int
    default_max_tokens: int
