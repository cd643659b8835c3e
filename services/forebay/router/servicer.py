"""RouterService on the wire: the public contract to the use cases and back."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code, FieldViolation, MeshError
from forebay.router import bounds
from forebay.router.client import Client, Finished, GatheredAnswer, Started
from forebay.router.domain.stream import Piece
from forebay.router.intake import Intake, Received
from forebay.router.messages import (
    from_pb_ask,
    to_pb_answer,
    to_pb_delta,
    to_pb_finished,
    to_pb_model,
    to_pb_started,
)
from forebay.router.service import Router
from forebay.rpc.unread import UnreadMessage

FULL_NAME = "forebay.api.router.v1.RouterService"

DEFAULT_PAGE = 100
MAX_PAGE = 1000

Context = grpc.aio.ServicerContext[Any, Any]
GenerationRequest = TypeVar("GenerationRequest", router_pb2.GenerateRequest, router_pb2.StreamGenerateRequest)


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Serves tenants; each call's message is read by the intake, once the caller is known."""

    def __init__(self, router: Router, intake: Intake) -> None:
        """Serves `router` to whom `intake` lets in."""
        self._router = router
        self._intake = intake

    async def Generate(self, unread: UnreadMessage, context: Context) -> router_pb2.GenerateResponse:  # type: ignore[override]
        """Answers in one message: a stream that is gathered here."""
        received = await self._intake.receive(unread, context, router_pb2.GenerateRequest, bounds.GENERATE)
        answer = GatheredAnswer()
        await self._answer(received, context, answer)
        return to_pb_answer(answer)

    async def StreamGenerate(self, unread: UnreadMessage, context: Context) -> None:  # type: ignore[override]
        """Answers as tokens come: they are written by the flushers instead of yielded here."""
        received = await self._intake.receive(unread, context, router_pb2.StreamGenerateRequest, bounds.STREAM_GENERATE)
        await self._answer(received, context, _StreamClient(context))

    async def CountTokens(self, unread: UnreadMessage, context: Context) -> router_pb2.CountTokensResponse:  # type: ignore[override]
        """Says how large a prompt is."""
        received = await self._intake.receive(unread, context, router_pb2.CountTokensRequest, bounds.COUNT_TOKENS)
        self._intake.free(received.caller.tenant.tenant_id)
        size, room = await self._router.count_tokens(received.caller, received.message.model, received.prompt)
        return router_pb2.CountTokensResponse(prompt_tokens=size, remaining_context=room)

    async def ListModels(self, unread: UnreadMessage, context: Context) -> router_pb2.ListModelsResponse:  # type: ignore[override]
        """Lists the caller's models; a page's token is the name of its last model."""
        received = await self._intake.receive(unread, context, router_pb2.ListModelsRequest, bounds.LIST_MODELS)
        caller, request = received.caller, received.message
        self._intake.free(caller.tenant.tenant_id)
        if request.page_size > MAX_PAGE:
            violation = FieldViolation("page_size", f"must be at most {MAX_PAGE:,}")
            message = f"{violation.field} {violation.description}"
            raise MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", message, field_violations=[violation])
        cards, more = self._router.list_models(caller, request.page_token, request.page_size or DEFAULT_PAGE)
        return router_pb2.ListModelsResponse(
            models=[to_pb_model(card) for card in cards], next_page_token=cards[-1].name if more else ""
        )

    async def Embed(self, unread: UnreadMessage, context: Context) -> router_pb2.EmbedResponse:  # type: ignore[override]
        """Is still to come."""
        await self._intake.receive(unread, context, router_pb2.EmbedRequest, bounds.EMBED)
        raise MeshError(Code.UNIMPLEMENTED, "FEATURE_NOT_OFFERED", "no embedding model is served here yet")

    async def _answer(self, received: Received[GenerationRequest], context: Context, client: Client) -> None:
        with self._intake.free_if_refused(received.caller.tenant.tenant_id):
            ask = from_pb_ask(received.message.options, received.prompt)
            await self._router.answer(received.caller, ask, client, context.time_remaining())


class _StreamClient:
    """A client at the other end of a stream."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def started(self, started: Started) -> None:
        """Writes the first event."""
        await self._write(to_pb_started(started))

    async def deliver(self, piece: Piece) -> None:
        """Writes the next tokens."""
        await self._write(to_pb_delta(piece))

    async def finished(self, finished: Finished) -> None:
        """Writes the last event."""
        await self._write(to_pb_finished(finished))

    async def _write(self, event: router_pb2.StreamGenerateResponse) -> None:
        try:
            await self._context.write(event)
        except grpc.aio.BaseError:
            raise MeshError(Code.CANCELLED, "CLIENT_GONE", "the client went away") from None
