"""Envoy's RateLimitService on the wire, so that a proxy can refuse what is too much before it reaches a router.

A descriptor of one entry is understood, of these:

    authorization   the value of the request's header of this name; the tenant follows from the verified key
    tenant          a tenant's id, from a caller that may name tenants

Any other, and any other domain, is let through.
"""

from __future__ import annotations

import base64
import math

from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import RateLimitDescriptor as Descriptor
from envoy.service.ratelimit.v3 import rls_pb2

from forebay.errors import Code, MeshError
from forebay.quota.domain.limits import Kind
from forebay.quota.edge import Edge, EdgeDecision
from forebay.quota.messages import require
from forebay.rpc.allowlist import ADMIN
from forebay.rpc.interceptors import caller
from forebay.rpc.status import to_pb_duration, to_status

DOMAIN = "forebay"
MAX_DESCRIPTORS = 8
MAX_HITS = 1_000_000
# Who may name a tenant: a proxy passes on what the public says and proves nothing by it. Nobody is known in plaintext.
_MAY_NAME_TENANTS = frozenset({ADMIN, ""})

_OK = rls_pb2.RateLimitResponse.OK
_OVER_LIMIT = rls_pb2.RateLimitResponse.OVER_LIMIT


class EdgeServicer:
    """Takes calls apart, and puts answers together."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def ShouldRateLimit(self, request: rls_pb2.RateLimitRequest, context: object) -> rls_pb2.RateLimitResponse:
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
        response = rls_pb2.RateLimitResponse(overall_code=_OK, statuses=map(_to_pb_status, decisions))
        for decision in decisions:
            if decision is not None and decision.refusal is not None:
                _refuse(response, decision.refusal)
                break
        return response

    async def _decide(self, domain: str, descriptor: Descriptor, hits: int) -> EdgeDecision | None:
        tenant_id = self._tenant(descriptor) if domain == DOMAIN else None
        return await self._edge.count(tenant_id, hits) if tenant_id is not None else None

    def _tenant(self, descriptor: Descriptor) -> str | None:
        if len(descriptor.entries) != 1:
            return None
        (entry,) = descriptor.entries
        if entry.key == "authorization":
            return self._edge.tenant_of(entry.value)
        if entry.key == "tenant":
            if caller.get() not in _MAY_NAME_TENANTS:
                message = f"{caller.get()} may not name tenants; send the `authorization` of the request"
                raise MeshError(Code.PERMISSION_DENIED, "TENANT_NOT_BELIEVED", message)
            return str(entry.value)
        return None


def _hits(request: rls_pb2.RateLimitRequest, descriptor: Descriptor) -> int:
    return int(descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1)


def _refuse(response: rls_pb2.RateLimitResponse, refusal: MeshError) -> None:
    """Has the proxy answer a gRPC client with the status that a router would give it: message and details."""
    response.overall_code = _OVER_LIMIT
    response.raw_body = refusal.message.encode()
    details = base64.b64encode(to_status(refusal).SerializeToString()).decode().rstrip("=")
    response.response_headers_to_add.add(key="grpc-status-details-bin", value=details)


def _to_pb_status(decision: EdgeDecision | None) -> rls_pb2.RateLimitResponse.DescriptorStatus:
    if decision is None:
        return rls_pb2.RateLimitResponse.DescriptorStatus(code=_OK)
    row, taken, value = decision.row, decision.taken, decision.row.value or 0
    units = rls_pb2.RateLimitResponse.RateLimit
    return rls_pb2.RateLimitResponse.DescriptorStatus(
        code=_OK if taken.room else _OVER_LIMIT,
        current_limit=rls_pb2.RateLimitResponse.RateLimit(
            name=row.limit,
            requests_per_unit=min(value, 2**32 - 1),
            unit=units.SECOND if row.kind is Kind.RATE else units.MINUTE,
        ),
        limit_remaining=min(max(0, value - taken.used), 2**32 - 1),
        # The proxy tells whole seconds and drops what is left of one, after which it would be too early.
        duration_until_reset=to_pb_duration(math.ceil(taken.resets_in_ms / 1000)),
    )
