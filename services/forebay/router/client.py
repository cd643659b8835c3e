"""The client port: where an answer goes, piece by piece, in the order of the public contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forebay.router.domain.events import FinishReason, Usage
from forebay.router.domain.stream import Piece


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; `trace_id` is empty when it is not traced."""

    request_id: str
    model: str
    prompt_tokens: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The request ended; times in seconds from admission, the first None when no token came.

    Attributes:
        shortened: whether max_tokens was lowered because too much waited.
    """

    reason: FinishReason
    usage: Usage
    time_to_first_token_s: float | None
    queue_time_s: float
    shortened: bool = False


class Client(Protocol):
    """Takes one answer.

    Its methods are awaited one at a time, return when more can be taken, and raise MeshError CANCELLED once the client is gone.
    """

    async def started(self, started: Started) -> None:
        """Takes the first word."""
        ...

    async def deliver(self, piece: Piece) -> None:
        """Takes the next tokens."""
        ...

    async def finished(self, finished: Finished) -> None:
        """Takes the last word."""
        ...


class GatheredAnswer:
    """The port's in-memory twin, which unary calls are answered from: it takes everything at once and keeps it.

    Attributes:
        texts: of the pieces; joined at the end alone, since a text that grows is copied with each piece.
    """

    def __init__(self) -> None:
        self.start: Started | None = None
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.end: Finished | None = None

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self.texts)

    async def started(self, started: Started) -> None:
        """Keeps the first word."""
        self.start = started

    async def deliver(self, piece: Piece) -> None:
        """Adds the next tokens to those before."""
        position, token_ids, text = piece
        assert position == len(self.token_ids)
        self.token_ids += token_ids
        self.texts.append(text)

    async def finished(self, finished: Finished) -> None:
        """Keeps the last word."""
        self.end = finished
