"""The workers port: payloads go out with their grants; tokens come back into each request's stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from forebay.router.delivery import Delivery
from forebay.router.domain.events import Broken, Finished, FinishReason, Grant, Usage
from forebay.router.request import Request


class Workers(Protocol):
    """Runs attempts; answers through the request's stream and `Request.tell`. Nothing here waits or raises."""

    def start(self, request: Request, grant: Grant) -> None:
        """Brings the payload to the granted worker."""
        ...

    def cancel(self, request: Request, reason: FinishReason) -> None:
        """Tells the worker to stop; a last word with the usage follows, or that there was nothing to stop."""
        ...

    def forget(self, request: Request) -> None:
        """Drops what is still known of a request that has ended."""
        ...


class MemoryWorkers:
    """The port's in-memory twin: workers that do what they are told by `yield_tokens`, `finish` and `break_off`.

    Attributes:
        running: the grant of each running request, by request id.
        started: (request id, attempt, worker id), in order.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.running: dict[str, tuple[Request, Grant]] = {}
        self.started: list[tuple[str, int, str]] = []
        self._delivery = delivery

    def start(self, request: Request, grant: Grant) -> None:
        """Takes the payload."""
        self.running[request.id] = (request, grant)
        self.started.append((request.id, grant.attempt, grant.worker_id))

    def cancel(self, request: Request, reason: FinishReason) -> None:
        """Ends the attempt with what it has used."""
        self.finish(request.id, reason)

    def forget(self, request: Request) -> None:
        """Drops it."""
        self.running.pop(request.id, None)

    def yield_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Has the engine yield tokens; the text of each is one letter."""
        request, grant = self.running[request_id]
        text = "".join(chr(ord("a") + token % 26) for token in token_ids)
        assert request.tokens.append(token_ids, text, "", request.tokens.received + len(token_ids))
        request.first_output(grant.attempt, 0.0)
        if not request.outflow.queued:
            self._delivery.ready(request.outflow)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """Has the attempt end."""
        request, grant = self.running.pop(request_id)
        usage = Usage(len(request.payload.prompt_token_ids), 0, request.tokens.received)
        request.tell(Finished(grant.attempt, reason, usage, 0.0))

    def break_off(self, worker_id: str) -> None:
        """Has the session to a worker break."""
        for request, grant in [run for run in self.running.values() if run[1].worker_id == worker_id]:
            del self.running[request.id]
            request.tell(Broken(grant.attempt))
