"""One live request: all that the router knows of it between its reservation and its settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.trace import INVALID_SPAN, Span

from forebay.errors import Code, MeshError
from forebay.router.access import Caller
from forebay.router.client import Client
from forebay.router.delivery import Outflow, too_slow
from forebay.router.domain.ask import Ask, Sampling
from forebay.router.domain.decisions import Decision
from forebay.router.domain.events import Event, FinishReason, FirstOutput, Stop
from forebay.router.domain.life import Life, deadline_exceeded
from forebay.router.domain.stream import TokenStream


@dataclass(frozen=True, slots=True)
class Payload:
    """What is to be run, as the worker gets it.

    Attributes:
        model: the model's name.
        sampling: as asked for, with max_tokens and seed always set.
        max_tokens: the most tokens of the answer; what it came to is the stream's limit.
        prefix_hashes: of the prompt's leading blocks, for the scheduler.
        prefix_block_tokens: tokens per prefix hash.
        adapter: one of the tenant's; empty for the bare model.
    """

    model: str
    prompt_token_ids: Sequence[int]
    sampling: Sampling
    max_tokens: int
    prefix_hashes: list[int]
    prefix_block_tokens: int
    adapter: str = ""


class Request:
    """A live request. Times are in seconds of the monotonic clock.

    Its own task alone carries out decisions; links tell it what has happened and read where it stands.

    Attributes:
        id: 32 hex digits; names the request in the whole mesh.
        caller: who pays.
        ask: what was asked for.
        payload: what is to be run.
        admitted_at, deadline_at: when it came, and when its client stops waiting.
        start_at: not to start before; quota is slowing the tenant down.
        life: where it stands; changed by `tell` alone.
        tokens, outflow: what has come of the answer, and its way to the client.
        decisions: what is to be done next.
        enqueued_at, queued_at: when the first attempt was submitted, and when the present one.
        granted_at, queue_time_s: when the present attempt was granted; how long all of them have waited.
        first_output_at: when the first output came.
        stopping_at: when the worker was told to stop.
        phase: the span of what it is in now; peers hang their own spans under it.
    """

    __slots__ = (
        "admitted_at", "ask", "caller", "deadline_at", "decisions", "enqueued_at", "first_output_at", "granted_at", "id",
        "life", "outflow", "payload", "phase", "queue_time_s", "queued_at", "start_at", "stopping_at", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        caller: Caller,
        ask: Ask,
        payload: Payload,
        client: Client,
        *,
        admitted_at: float,
        deadline_at: float,
        max_attempts: int,
    ) -> None:
        self.id = request_id
        self.caller = caller
        self.ask = ask
        self.payload = payload
        self.admitted_at = admitted_at
        self.deadline_at = deadline_at
        self.start_at = admitted_at
        self.tokens = TokenStream(payload.max_tokens)
        self.outflow = Outflow(self.tokens, client, cut_off=lambda: self.tell(client_too_slow()))
        self.life = Life(
            self.tokens,
            len(payload.prompt_token_ids),
            continuable=not payload.sampling.penalised,
            max_attempts=max_attempts,
        )
        self.decisions: asyncio.Queue[Decision] = asyncio.Queue()
        self.enqueued_at = admitted_at
        self.queued_at = admitted_at
        self.granted_at = admitted_at
        self.queue_time_s = 0.0
        self.first_output_at: float | None = None
        self.stopping_at: float | None = None
        self.phase: Span = INVALID_SPAN

    @property
    def shortened(self) -> bool:
        """Whether fewer tokens may be generated than were asked for, because too much waited."""
        return self.tokens.limit < self.payload.max_tokens

    def tell(self, event: Event) -> None:
        """Takes what has happened; what is to be done about it is left to the request's task."""
        for decision in self.life.on(event):
            self.decisions.put_nowait(decision)

    def first_output(self, attempt: int, now: float) -> None:
        """Takes note that an attempt yields output."""
        if self.first_output_at is None:
            self.first_output_at = now
        self.tell(FirstOutput(attempt))


# Every request between reservation and settlement, by id; the service puts them in and takes them out.
LiveRequests = dict[str, Request]


def client_gone() -> Stop:
    """The client went away, or its deadline passed."""
    return _stop(Code.CANCELLED, "CLIENT_GONE", "the client went away before the answer was complete")


def deadline_passed() -> Stop:
    """The router's own bound on a request's time has passed."""
    return Stop(FinishReason.CANCELLED, deadline_exceeded())


def client_too_slow() -> Stop:
    """The client has not read for too long."""
    return Stop(FinishReason.CANCELLED, too_slow())


def no_longer_allowed(objection: MeshError) -> Stop:
    """The tenant or its key has lost its leave while the request ran."""
    return Stop(FinishReason.CANCELLED, objection)


def lease_lost() -> Stop:
    """The hold lapsed and could not be revived."""
    return _stop(Code.UNAVAILABLE, "LEASE_LOST", "the reservation lapsed and its room was taken; try again")


def out_of_order() -> Stop:
    """The worker's output cannot be passed on without a gap or a repeat."""
    return _stop(Code.INTERNAL, "STREAM_OUT_OF_ORDER", "the worker's tokens did not follow on those before; try again")


def draining() -> MeshError:
    """The router is being stopped and takes nothing new."""
    message = "this router is being stopped; try again, on another router where there is one"
    return MeshError(Code.UNAVAILABLE, "DRAINING", message, retry_after=1)


def cut_off() -> MeshError:
    """The router's end has come before the request's."""
    message = "this router was stopped before the answer was complete; try again, on another router where there is one"
    return MeshError(Code.UNAVAILABLE, "DRAINING", message, retry_after=1)


def router_stops() -> Stop:
    """The router's end has come."""
    return Stop(FinishReason.CANCELLED, cut_off())


def budget_spent() -> Stop:
    """The tenant's budget ran out in mid-stream; the answer ends regularly where it is."""
    return Stop(FinishReason.BUDGET, None)


def _stop(code: Code, reason: str, message: str) -> Stop:
    return Stop(FinishReason.CANCELLED, MeshError(code, reason, message))
