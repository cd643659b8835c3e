"""Following a server's stream of changes for ever, across restarts of either side."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from forebay.rpc.session import FIRST_BACKOFF_S, MAX_BACKOFF_S
from forebay.rpc.status import from_rpc_error
from forebay.telemetry import metrics
from forebay.telemetry.logs import get_logger

Resp = TypeVar("Resp", bound=Message)

log = get_logger("watch")


async def follow(
    name: str,
    open: Callable[[], grpc.aio.UnaryStreamCall[Any, Resp]],
    received: Callable[[Resp], None],
    ended: Callable[[], None] = lambda: None,
) -> None:
    """Opens a watch, hands on each message, and opens it again after each end with a back-off, until cancelled.

    Args:
        name: for logs and metrics.
        open: starts the call; called anew each time, so that it can say what is known already.
        received: gets each message, on the event loop.
        ended: told of each end, so that the owner knows since when it is cut off.
    """
    backoff = FIRST_BACKOFF_S
    while True:
        call = open()
        try:
            async for message in call:
                backoff = FIRST_BACKOFF_S
                received(message)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error)
            log.debug("watch ended", watch=name, reason=reason.reason, message=reason.message)
        finally:
            call.cancel()
        ended()
        metrics.SESSION_RECONNECTS.labels(name).inc()
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter needs no secrecy
        backoff = min(backoff * 2, MAX_BACKOFF_S)
