"""RateLimitService on the wire, under Envoy's name too, so that a proxy can refuse too many requests before they reach a router.

A descriptor of one entry is understood, of these:

    authorization   the value of the request's header of this name; the tenant follows from the verified key
    tenant          a tenant's id, from a caller that may name tenants

Any other, and any other domain, is let through.
"""

from __future__ import annotations

import base64
import math

import grpc

from forebay.api.quota.v1 import rate_limit_pb2, rate_limit_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.quota.domain.limits import Kind
from forebay.quota.edge import Edge, EdgeDecision
from forebay.quota.messages import require
from forebay.rpc.allowlist import ADMIN
from forebay.rpc.interceptors import caller
from forebay.rpc.status import to_pb_duration, to_status

FULL_NAME = "forebay.api.quota.v1.RateLimitService"
ENVOYS_NAME = "envoy.service.ratelimit.v3.RateLimitService"
DOMAIN = "forebay"
MAX_DESCRIPTORS = 8
MAX_HITS = 1_000_000
# Who may name a tenant: a proxy passes on what the public says and proves nothing by it. Nobody is known in plaintext.
_MAY_NAME_TENANTS = frozenset({ADMIN, ""})

_Response = rate_limit_pb2.ShouldRateLimitResponse
_OK, _OVER_LIMIT = _Response.CODE_OK, _Response.CODE_OVER_LIMIT


def add_edge_servicer_to_server(servicer: EdgeServicer, server: grpc.aio.Server) -> None:
    """Adds the service under its own name, for reflection and tools, and under the name that Envoy calls."""
    rate_limit_pb2_grpc.add_RateLimitServiceServicer_to_server(servicer, server)  # type: ignore[arg-type]
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.ShouldRateLimit,
        request_deserializer=rate_limit_pb2.ShouldRateLimitRequest.FromString,
        response_serializer=_Response.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ENVOYS_NAME, {"ShouldRateLimit": handler}),))


class EdgeServicer:
    """Takes calls apart, and puts answers together."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def ShouldRateLimit(self, request: rate_limit_pb2.ShouldRateLimitRequest, context: object) -> _Response:
        """Counts requests against each descriptor's limit; every limit that has room is taken of."""
        require(
            (len(request.descriptors) <= MAX_DESCRIPTORS, "descriptors", f"must be at most {MAX_DESCRIPTORS}"),
            (
                all(_hits(request, descriptor) <= MAX_HITS for descriptor in request.descriptors),
                "hits_addend",
                f"must be at most {MAX_HITS}",
            ),
        )
        decisions = [
            await self._decide(request.domain, descriptor, _hits(request, descriptor))
            for descriptor in request.descriptors
        ]
        response = _Response(overall_code=_OK, statuses=map(_to_pb_status, decisions))
        for decision in decisions:
            if decision is not None and decision.refusal is not None:
                _refuse(response, decision.refusal)
                break
        return response

    async def _decide(
        self, domain: str, descriptor: rate_limit_pb2.RateLimitDescriptor, hits: int
    ) -> EdgeDecision | None:
        tenant_id = self._tenant(descriptor) if domain == DOMAIN else None
        return await self._edge.count(tenant_id, hits) if tenant_id is not None else None

    def _tenant(self, descriptor: rate_limit_pb2.RateLimitDescriptor) -> str | None:
        if len(descriptor.entries) != 1:
            return None
        (entry,) = descriptor.entries
        if entry.key == "authorization":
            return self._edge.tenant_of(entry.value)
        if entry.key == "tenant":
            if caller.get() not in _MAY_NAME_TENANTS:
                message = f"{caller.get()} may not name tenants; send the `authorization` of the request"
                raise MeshError(Code.PERMISSION_DENIED, "TENANT_NOT_BELIEVED", message)
            return entry.value
        return None


def _hits(request: rate_limit_pb2.ShouldRateLimitRequest, descriptor: rate_limit_pb2.RateLimitDescriptor) -> int:
    if descriptor.is_negative_hits:
        return 0
    return descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1


def _refuse(response: _Response, refusal: MeshError) -> None:
    """Has the proxy answer a gRPC client with the status that a router would give it: message and details."""
    response.overall_code = _OVER_LIMIT
    response.raw_body = refusal.message.encode()
    details = base64.b64encode(to_status(refusal).SerializeToString()).decode().rstrip("=")
    response.response_headers_to_add.add(key="grpc-status-details-bin", value=details)


def _to_pb_status(decision: EdgeDecision | None) -> _Response.DescriptorStatus:
    if decision is None:
        return _Response.DescriptorStatus(code=_OK)
    row, taken, value = decision.row, decision.taken, decision.row.value or 0
    return _Response.DescriptorStatus(
        code=_OK if taken.room else _OVER_LIMIT,
        current_limit=_Response.RateLimit(
            name=row.limit,
            requests_per_unit=min(value, 2**32 - 1),
            unit=_Response.RateLimit.UNIT_SECOND if row.kind is Kind.RATE else _Response.RateLimit.UNIT_MINUTE,
        ),
        limit_remaining=min(max(0, value - taken.used), 2**32 - 1),
        # The proxy tells whole seconds and drops what is left of one, after which it would be too early.
        duration_until_reset=to_pb_duration(math.ceil(taken.resets_in_ms / 1000)),
    )
