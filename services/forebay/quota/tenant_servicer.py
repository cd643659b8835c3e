"""TenantService on the wire: tenants and plans for administrators to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.policy.messages import to_pb_tenant
from forebay.policy.model import TenantPolicy
from forebay.quota.messages import from_pb_page_size, from_pb_tenant_id, to_pb_plan
from forebay.quota.policies import PolicyFeed
from forebay.quota.service import tenant_not_found

V = TypeVar("V")


class TenantServicer(quota_pb2_grpc.TenantServiceServicer):
    """Shows the policies in force."""

    def __init__(self, feed: PolicyFeed) -> None:
        self._feed = feed

    async def ListTenants(
        self, request: quota_pb2.ListTenantsRequest, context: object
    ) -> quota_pb2.ListTenantsResponse:
        """Lists tenants in order of their id."""
        page, token = _page(self._feed.policies.tenants, request.page_size, request.page_token)
        return quota_pb2.ListTenantsResponse(tenants=map(_tenant, page), next_page_token=token)

    async def GetTenant(self, request: quota_pb2.GetTenantRequest, context: object) -> quota_pb2.GetTenantResponse:
        """Returns one tenant."""
        tenant_id = from_pb_tenant_id(request.tenant_id)
        tenant = self._feed.policies.tenants.get(tenant_id)
        if tenant is None:
            raise tenant_not_found(tenant_id)
        return quota_pb2.GetTenantResponse(tenant=_tenant(tenant))

    async def ListPlans(self, request: quota_pb2.ListPlansRequest, context: object) -> quota_pb2.ListPlansResponse:
        """Lists the plans in order of their name."""
        page, token = _page(self._feed.policies.plans, request.page_size, request.page_token)
        return quota_pb2.ListPlansResponse(plans=map(to_pb_plan, page), next_page_token=token)


def _page(items: Mapping[str, V], page_size: int, after: str) -> tuple[list[V], str]:
    """Returns a page of items in order of their name, and the token of the next, empty on the last."""
    most = from_pb_page_size(page_size)
    names = sorted(name for name in items if name > after)
    return [items[name] for name in names[:most]], names[most - 1] if len(names) > most else ""


def _tenant(tenant: TenantPolicy) -> quota_pb2.TenantPolicy:
    message = to_pb_tenant(tenant)
    message.ClearField("isolation_key")
    return message
