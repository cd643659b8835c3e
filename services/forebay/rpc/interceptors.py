"""What happens around every call that a server takes, in one fixed order.

Each interceptor is an async context manager around the handler, so that unary calls and streams are wrapped alike:

1. telemetry: outermost, so that it sees the final outcome of everything below; the server's span and the call's metrics.
2. errors: turns what the handler and the two below raise into a typed status, before telemetry looks at it.
3. identity: who is calling, by the connection's certificate; a refusal must come before any work.
4. deadline: refuses a call whose time is already spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind, StatusCode

from forebay.errors import Code, MeshError
from forebay.rpc.allowlist import PUBLIC, allowed
from forebay.rpc.idle_connections import Peers
from forebay.rpc.status import to_status
from forebay.rpc.tls import service_of
from forebay.rpc.unread import StrangerMessages, UnreadMessage, malformed
from forebay.telemetry import metrics
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import from_headers, in_span

log = get_logger("rpc")

# A server that cannot answer within this time says so at once instead of working in vain.
LEAST_USEFUL_SECONDS = 0.02

ABORT_WITHIN_S = 5.0

# Sessions outlive requests and health checks are noise: a span for them would be a trace of its own.
_UNTRACED = ("/grpc.", "Session", "/Schedule", "/Attach", "/Execute", "/Record", "/Watch", "/StreamUsage")


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A call that the identity interceptor refused.

    Attributes:
        method: the full name of the rpc.
        caller: the service or role in the caller's certificate; empty when there is none.
        name: the caller's own name in it, such as router-1; empty when there is none.
        reason: the error's reason.
        message: what the caller was told.
    """

    method: str
    caller: str
    name: str
    reason: str
    message: str


@dataclass(slots=True)
class Call:
    """One call in progress.

    Attributes:
        method: the full name, such as /forebay.api.router.v1.RouterService/Generate.
        mutual: whether the server's callers must show a certificate.
        metadata: the client's metadata, keys in lower case.
        refused: is told when the call is refused; must neither wait nor raise.
        outcome: OK, or the reason of the error; set by the errors interceptor.
    """

    method: str
    mutual: bool
    metadata: dict[str, str]
    context: grpc.aio.ServicerContext[Any, Any]
    refused: Callable[[RefusedCall], None] | None = None
    outcome: str = "OK"
    code: str = "OK"


# Which service is calling, as its certificate proves; empty for the public and on a plaintext connection.
caller: ContextVar[str] = ContextVar("caller", default="")

Interceptor = Callable[[Call], AbstractAsyncContextManager[None]]


def caller_name(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the name in the caller's certificate, such as alice; empty without one."""
    names = context.auth_context().get("x509_common_name", ())
    return next(iter(names), b"").decode(errors="replace")


@asynccontextmanager
async def telemetry(call: Call) -> AsyncIterator[None]:
    """Opens the server's span under the client's, and observes duration and outcome."""
    started = time.perf_counter()
    if any(part in call.method for part in _UNTRACED):
        try:
            yield
        finally:
            _observe(call, started)
        return
    service, _, method = call.method.lstrip("/").partition("/")
    name = f"{service.split('.')[2] if service.startswith('forebay.api.') else service}.{method}"
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with in_span(name, from_headers(call.metadata), SpanKind.SERVER, attributes) as span:
        try:
            yield
        finally:
            _observe(call, started)
            if call.outcome != "OK":
                span.set_attribute("error.type", call.outcome)
                span.set_status(StatusCode.ERROR if call.code in ("INTERNAL", "UNKNOWN") else StatusCode.UNSET)


def _observe(call: Call, started: float) -> None:
    metrics.RPC_SECONDS.labels(call.method, call.code).observe(time.perf_counter() - started)
    if call.outcome != "OK":
        metrics.ERRORS.labels(call.method, call.outcome).inc()


@asynccontextmanager
async def errors(call: Call) -> AsyncIterator[None]:
    """Ends the call with a typed status when the handler raises; a bug is logged here and told to nobody."""
    try:
        yield
    except MeshError as error:
        call.outcome, call.code = error.reason, error.code.name
        await _abort(call, error)
    except asyncio.CancelledError:
        call.outcome, call.code = "CANCELLED", "CANCELLED"
        raise
    except (grpc.aio.AbortError, grpc.aio.BaseError) as error:
        # The handler's own abort, or a connection that broke under a write.
        call.outcome = call.code = type(error).__name__
        raise
    except NotImplementedError:  # because gRPC's servicers raise it for what they leave out (Health/List); not ours
        call.outcome, call.code = "NOT_OFFERED", "UNIMPLEMENTED"
        await _abort(call, MeshError(Code.UNIMPLEMENTED, "NOT_OFFERED", "this server does not offer the rpc"))
    except Exception:
        call.outcome, call.code = "BUG", "INTERNAL"
        log.exception("handler failed", method=call.method)
        await _abort(call, MeshError(Code.INTERNAL, "BUG", "the service failed; its log has the details"))


async def _abort(call: Call, error: MeshError) -> None:
    # A client that reads nothing keeps the status waiting behind what it has not read; it still gets it once it reads.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ABORT_WITHIN_S):
            await call.context.abort_with_status(rpc_status.to_status(to_status(error)))


@asynccontextmanager
async def identity(call: Call) -> AsyncIterator[None]:
    """Makes the calling service known to the handler, and refuses it what the allowlist does not give it.

    Who is calling, the connection's certificate alone says; no header proves anything. In plaintext nobody is known: that
    is for development, and even then a tenant's key opens nothing but the public API.
    """
    if call.method not in PUBLIC:
        names = call.context.auth_context().get("x509_subject_alternative_name", ())
        service = service_of(list(names)) if call.mutual else ""
        if "authorization" in call.metadata and not call.method.startswith("/grpc."):
            raise _refused(call, service, "TENANT_KEY_REFUSED", "a tenant's key opens the public API and nothing else")
        if call.mutual and service not in allowed(call.method):
            message = f"{service or 'a certificate without a service'} may not call this rpc"
            raise _refused(call, service, "CALLER_NOT_ALLOWED", message)
        caller.set(service)  # each call has a context of its own, so nothing is to be reset
    yield


def _refused(call: Call, service: str, reason: str, message: str) -> MeshError:
    log.warning("call refused", caller=service or "unknown", peer=call.context.peer(), rpc=call.method, reason=reason)
    if call.refused is not None:
        call.refused(RefusedCall(call.method, service, caller_name(call.context) if service else "", reason, message))
    return MeshError(Code.PERMISSION_DENIED, reason, message)


@asynccontextmanager
async def deadline(call: Call) -> AsyncIterator[None]:
    """Refuses a call that has no time left to be answered."""
    remaining = call.context.time_remaining()
    if remaining is not None and remaining < LEAST_USEFUL_SECONDS:
        raise MeshError(
            Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", "the deadline leaves no time to answer; allow more"
        )
    yield


ORDER: tuple[Interceptor, ...] = (telemetry, errors, identity, deadline)


class Interceptors(grpc.aio.ServerInterceptor):
    """Puts `ORDER` around every handler of a server."""

    def __init__(
        self,
        *,
        mutual: bool,
        refused: Callable[[RefusedCall], None] | None = None,
        unread: Collection[str] = (),
        peers: Peers | None = None,
    ) -> None:
        """Prepares.

        Args:
            mutual: whether the allowlist holds.
            refused: is told of each call that the allowlist stops.
            unread: full names of the services whose handlers read their message themselves; may grow until the server starts.
            peers: is told which connections have calls.
        """
        self._mutual = mutual
        self._refused = refused
        self._unread = unread
        self._peers = peers or Peers()
        self._strangers = StrangerMessages()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method: str = handler_call_details.method
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        (kind,) = (kind for kind in kinds if getattr(handler, kind))

        def call_of(context: grpc.aio.ServicerContext[Any, Any]) -> Call:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            return Call(method, self._mutual, metadata, context, self._refused)

        behaviour, deserialize = getattr(handler, kind), _forgiving(handler.request_deserializer)
        many = kind.startswith("stream")
        requests: Requests = functools.partial(_read, many)
        reads_itself = method.lstrip("/").partition("/")[0] in self._unread
        if reads_itself:
            requests = _unread
        elif not self._mutual and method.startswith("/grpc."):
            reads_itself = True
            requests = functools.partial(_strangers, self._strangers, deserialize, many)
        wrapped = _wrap(behaviour, call_of, kind, requests, self._peers)
        if reads_itself:
            # To gRPC these are streams: it then begins a call before the message is there, and reads when it is told to.
            kind, deserialize = f"stream_{kind.partition('_')[2]}", None
        return getattr(grpc, f"{kind}_rpc_method_handler")(  # type: ignore[no-any-return]
            wrapped, deserialize, handler.response_serializer
        )


_MALFORMED = object()


def _forgiving(deserialize: Any) -> Any:
    """Returns a deserialiser that lets malformed bytes through as a value: gRPC would answer them with an untyped INTERNAL."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:
            return _MALFORMED

    return read if deserialize is not None else None


# Makes what a handler is given: from what gRPC has read or, for a call that is a stream to gRPC alone, from the call.
Requests = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


async def _read(many: bool, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """Returns the message that gRPC has read, or the messages as it reads them."""
    return _all_well_formed(request) if many else _well_formed(request)


async def _unread(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """Returns the message as one that the handler reads."""
    return UnreadMessage(context)


async def _strangers(
    messages: StrangerMessages,
    deserialize: Any,
    many: bool,
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
) -> Any:
    """Reads the message or the messages of a caller without a key."""
    if many:
        return _all_well_formed(deserialize(data) async for data in messages.all(context))
    return _well_formed(deserialize(await messages.one(context)))


def _well_formed(request: Any) -> Any:
    if request is _MALFORMED:
        raise malformed()
    return request


async def _all_well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)


def _wrap(
    behaviour: Any,
    call_of: Callable[[grpc.aio.ServicerContext[Any, Any]], Call],
    kind: str,
    requests: Requests,
    peers: Peers,
) -> Any:
    """Puts the interceptors around a handler of one of gRPC's four kinds, and makes sure that it gets well-formed messages."""

    @asynccontextmanager
    async def around(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        call = call_of(context)
        async with AsyncExitStack() as stack:
            stack.enter_context(peers.calling(context.peer()))
            for interceptor in ORDER:
                await stack.enter_async_context(interceptor(call))
            yield

    if kind.endswith("stream") and inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            # Written here and not yielded: gRPC drops a generator whose write fails, and whatever finds it then, in a context
            # of its own, ends it as if it had ended well.
            async with around(context):
                try:
                    given = await requests(request, context)
                    async with contextlib.aclosing(behaviour(given, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                except MeshError as error:
                    raise _without_frames(error)  # noqa: B904  # it is the same error

        return stream

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with around(context):
            try:
                return await behaviour(await requests(request, context), context)
            except MeshError as error:
                raise _without_frames(error)  # noqa: B904  # it is the same error

    return answer


def _without_frames(error: MeshError) -> MeshError:
    """Returns an error that no longer holds the frames through which it came, nor so a message of megabytes in one of them.

    The error of an aborted call and the call itself refer to each other, so they are there until the garbage collector comes.
    The frames are not cleared: one may belong to a task that shares the error and goes on, and clearing would end it.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    return error
