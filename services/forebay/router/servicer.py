"""RouterService on the wire: the public contract to the use cases and back."""

from __future__ import annotations

from typing import Any

import grpc

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.errors import Code, FieldViolation, MeshError
from forebay.router.access import Access, Caller
from forebay.router.client import Client, Finished, GatheredAnswer, Started
from forebay.router.domain.stream import Piece
from forebay.router.messages import (
    from_pb_ask,
    from_pb_prompt,
    to_pb_answer,
    to_pb_delta,
    to_pb_finished,
    to_pb_model,
    to_pb_started,
)
from forebay.router.service import Router

FULL_NAME = "forebay.api.router.v1.RouterService"

DEFAULT_PAGE = 100
MAX_PAGE = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Serves tenants."""

    def __init__(self, router: Router, access: Access) -> None:
        """Serves `router` to whom `access` knows."""
        self._router = router
        self._access = access

    async def Generate(self, request: router_pb2.GenerateRequest, context: Context) -> router_pb2.GenerateResponse:
        """Answers in one message: a stream that is gathered here."""
        answer = GatheredAnswer()
        await self._answer(request.options, context, answer)
        return to_pb_answer(answer)

    async def StreamGenerate(  # type: ignore[override]  # its tokens are written by the flushers instead of yielded here
        self, request: router_pb2.StreamGenerateRequest, context: Context
    ) -> None:
        """Answers as tokens come."""
        await self._answer(request.options, context, _StreamClient(context))

    async def CountTokens(
        self, request: router_pb2.CountTokensRequest, context: Context
    ) -> router_pb2.CountTokensResponse:
        """Says how large a prompt is."""
        caller = await verify(self._access, context)
        size, room = await self._router.count_tokens(caller, request.model, from_pb_prompt(request.prompt))
        return router_pb2.CountTokensResponse(prompt_tokens=size, remaining_context=room)

    async def ListModels(
        self, request: router_pb2.ListModelsRequest, context: Context
    ) -> router_pb2.ListModelsResponse:
        """Lists the caller's models; a page's token is the name of its last model."""
        caller = await verify(self._access, context)
        if request.page_size > MAX_PAGE:
            violation = FieldViolation("page_size", f"must be at most {MAX_PAGE:,}")
            message = f"{violation.field} {violation.description}"
            raise MeshError(Code.INVALID_ARGUMENT, "BAD_REQUEST", message, field_violations=[violation])
        cards, more = self._router.list_models(caller, request.page_token, request.page_size or DEFAULT_PAGE)
        return router_pb2.ListModelsResponse(
            models=[to_pb_model(card) for card in cards], next_page_token=cards[-1].name if more else ""
        )

    async def Embed(self, request: router_pb2.EmbedRequest, context: Context) -> router_pb2.EmbedResponse:
        """Is still to come."""
        await verify(self._access, context)
        raise MeshError(Code.UNIMPLEMENTED, "FEATURE_NOT_OFFERED", "no embedding model is served here yet")

    async def _answer(self, options: router_pb2.GenerateOptions, context: Context, client: Client) -> None:
        caller = await verify(self._access, context)
        await self._router.answer(caller, from_pb_ask(options), client, context.time_remaining())


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


async def verify(access: Access, context: Context) -> Caller:
    """Returns the caller of a call, by its key in the metadata `authorization`.

    Raises:
        MeshError: as of `Access.verify`.
    """
    metadata = dict(context.invocation_metadata() or ())
    return await access.verify(str(metadata.get("authorization", "")))
