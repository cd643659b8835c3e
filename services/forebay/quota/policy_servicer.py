"""PolicyService on the wire: a snapshot in pages, then each change, with only the secrets that a watcher needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import grpc

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.errors import Code, MeshError
from forebay.policy.messages import to_pb_key, to_pb_tenant
from forebay.policy.model import TenantPolicy
from forebay.quota.messages import require
from forebay.quota.policies import Edition, PolicyFeed
from forebay.quota.served import Served
from forebay.rpc.interceptors import caller

# Of tenants and keys in one message, of which none is half as large.
PAGE_BYTES = 1 << 20
# What one watcher may say that it serves.
MAX_SERVED = 1_000
MAX_NAME = 256

_ROUTER, _WORKER = quota_pb2.WATCHER_KIND_ROUTER, quota_pb2.WATCHER_KIND_WORKER


class PolicyServicer(quota_pb2_grpc.PolicyServiceServicer):
    """Tells watchers of the policies in force."""

    def __init__(self, feed: PolicyFeed, served: Served | None = None) -> None:
        self._feed = feed
        self._served = served or Served()

    async def WatchPolicies(  # type: ignore[override]  # the stubs know handlers that yield only
        self,
        request: quota_pb2.WatchPoliciesRequest,
        context: grpc.aio.ServicerContext[quota_pb2.WatchPoliciesRequest, quota_pb2.WatchPoliciesResponse],
    ) -> None:
        """Sends a snapshot unless the watcher has it already, and then each change."""
        kind = request.kind
        if kind not in quota_pb2.WatcherKind.values()[1:]:
            raise MeshError(Code.INVALID_ARGUMENT, "WATCHER_KIND_UNKNOWN", "name the kind of service that watches")
        _require_kind_of_caller(kind)
        require(
            (
                len(request.serves) <= MAX_SERVED
                and all(len(each.model) <= MAX_NAME and len(each.pool) <= MAX_NAME for each in request.serves),
                "serves",
                f"must be at most {MAX_SERVED}, with names of at most {MAX_NAME} characters",
            )
        )
        with self._feed.watch() as watch, self._known(request):
            edition = watch.first
            if request.known_version == edition.version:
                # An empty change: the watcher learns that it is connected, and that what it has is in force.
                await context.write(quota_pb2.WatchPoliciesResponse(version=edition.version))
            else:
                for page in _snapshot(edition, kind):
                    await context.write(page)
            while True:
                for message in _change(await watch.next(), kind):
                    await context.write(message)

    def _known(self, request: quota_pb2.WatchPoliciesRequest) -> AbstractContextManager[None]:
        """Knows what the watcher serves, for as long as it watches."""
        if request.serves and request.kind == _ROUTER:
            return self._served.by_router(each.model for each in request.serves)
        if request.serves and request.kind == _WORKER:
            return self._served.by_worker(each.pool for each in request.serves)
        return nullcontext()


def _require_kind_of_caller(kind: quota_pb2.WatcherKind.ValueType) -> None:
    """Refuses a watcher whose certificate says another kind; on a plaintext connection nothing says any."""
    name = quota_pb2.WatcherKind.Name(kind).removeprefix("WATCHER_KIND_").lower()
    if caller.get() not in ("", name):
        raise MeshError(Code.PERMISSION_DENIED, "KIND_MISMATCH", f"a {caller.get()} is not sent what a {name} may know")


def _snapshot(edition: Edition, kind: quota_pb2.WatcherKind.ValueType) -> Iterator[quota_pb2.WatchPoliciesResponse]:
    page, room = quota_pb2.WatchPoliciesResponse(version=edition.version, snapshot_begin=True), PAGE_BYTES
    tenants = (("tenants", _tenant(tenant, kind)) for tenant in edition.policies.tenants.values())
    keys = (("keys", to_pb_key(key)) for key in edition.policies.keys.values() if kind == _ROUTER)
    for field, item in chain(tenants, keys):
        room -= item.ByteSize()
        if room < 0:
            yield page
            page, room = quota_pb2.WatchPoliciesResponse(version=edition.version), PAGE_BYTES - item.ByteSize()
        getattr(page, field).append(item)
    page.snapshot_end = True
    yield page


def _change(edition: Edition, kind: quota_pb2.WatcherKind.ValueType) -> Iterator[quota_pb2.WatchPoliciesResponse]:
    change = edition.change
    message = quota_pb2.WatchPoliciesResponse(
        version=edition.version,
        tenants=[_tenant(tenant, kind) for tenant in change.tenants],
        keys=map(to_pb_key, change.keys if kind == _ROUTER else ()),
        removed_tenants=change.removed_tenants,
        removed_keys=change.removed_keys if kind == _ROUTER else (),
    )
    if message.ByteSize() <= PAGE_BYTES:
        yield message
    else:  # in several messages it could break off in the middle, and the watcher would have its version but not all of it
        yield from _snapshot(edition, kind)


def _tenant(tenant: TenantPolicy, kind: quota_pb2.WatcherKind.ValueType) -> quota_pb2.TenantPolicy:
    message = to_pb_tenant(tenant)
    if kind != _ROUTER:
        message.ClearField("system_prompt")
    if kind not in (_ROUTER, _WORKER):
        message.ClearField("isolation_key")
    return message
