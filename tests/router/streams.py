"""Reading a router's streams to their end."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from forebay.api.router.v1 import router_pb2
from forebay.errors import MeshError
from forebay.rpc.status import from_rpc_error

from .conftest import StreamCall
from .peers import soon


async def drain(call: grpc.aio.UnaryStreamCall) -> list[Any]:
    """Returns all that is still to come on a stream."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def failure(call: grpc.aio.UnaryStreamCall | grpc.aio.UnaryUnaryCall) -> MeshError:
    """Returns the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(drain(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    return from_rpc_error(caught.value)


async def started(call: StreamCall) -> router_pb2.StreamGenerateResponse.Started:
    event = await soon(call.read())
    assert event.WhichOneof("event") == "started"
    return event.started


async def rest(call: StreamCall, seen: int = 0) -> tuple[list[int], str, router_pb2.StreamGenerateResponse.Finished]:
    """Returns tokens, text and the last event, after `seen` tokens; checks that the deltas follow on one another."""
    tokens: list[int] = []
    text, finished = "", None
    for event in await soon(drain(call)):
        assert finished is None, "nothing follows the last event"
        if event.HasField("delta"):
            assert event.delta.position == seen + len(tokens)
            tokens += event.delta.token_ids
            text += event.delta.text
        else:
            finished = event.finished
    assert finished is not None
    return tokens, text, finished
