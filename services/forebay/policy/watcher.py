"""The cache of policies that a service holds, kept true by quota's WatchPolicies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import Clock
from forebay.policy.messages import from_pb_key, from_pb_tenant
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.rpc.watch import follow


class PolicyCache:
    """The policies as last heard; reading costs a dictionary look-up.

    Attributes:
        tenants: by tenant id.
        keys: by key id; empty where the watcher is not a router.
        version: of the last message applied; 0 before the first snapshot.
    """

    def __init__(self) -> None:
        self.tenants: dict[str, TenantPolicy] = {}
        self.keys: dict[str, KeyPolicy] = {}
        self.version = 0
        self._pages: list[quota_pb2.WatchPoliciesResponse] | None = None

    def begin(self) -> None:
        """Drops the pages of a snapshot that broke off: what a new watch sends does not continue them."""
        self._pages = None

    def apply(self, message: quota_pb2.WatchPoliciesResponse) -> bool:
        """Applies a page or a change; returns whether what can be read has changed.

        A snapshot replaces everything at its last page, in one go: a reader never sees half of one.
        """
        if message.snapshot_begin:
            self._pages = []
        if self._pages is None:
            self._apply(message, self.tenants, self.keys)
            self.version = message.version
            return True
        self._pages.append(message)
        if not message.snapshot_end:
            return False
        tenants: dict[str, TenantPolicy] = {}
        keys: dict[str, KeyPolicy] = {}
        for page in self._pages:
            self._apply(page, tenants, keys)
        self.tenants, self.keys, self.version, self._pages = tenants, keys, message.version, None
        return True

    @staticmethod
    def _apply(
        message: quota_pb2.WatchPoliciesResponse, tenants: dict[str, TenantPolicy], keys: dict[str, KeyPolicy]
    ) -> None:
        for gone in message.removed_tenants:
            tenants.pop(gone, None)
            for key_id in [key_id for key_id, key in keys.items() if key.tenant_id == gone]:
                del keys[key_id]
        for gone in message.removed_keys:
            keys.pop(gone, None)
        for tenant in message.tenants:
            tenants[tenant.tenant_id] = from_pb_tenant(tenant)
        for key in message.keys:
            keys[key.key_id] = from_pb_key(key)


class PolicyWatcher:
    """Follows quota for one replica.

    Attributes:
        cache: the policies.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        watcher: common_pb2.Peer,
        kind: quota_pb2.WatcherKind.ValueType,
        clock: Clock,
        changed: Callable[[], None] = lambda: None,
        serves: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Prepares to follow.

        Args:
            channel: to quota.
            watcher: who follows.
            kind: the kind of service that it is.
            clock: for how long the watch has been broken.
            changed: is called on the event loop after each change of what can be read.
            serves: the models that the watcher serves, each with the pool, for warnings to administrators.
        """
        self.cache = PolicyCache()
        self._stub = quota_pb2_grpc.PolicyServiceStub(channel)
        self._watcher = watcher
        self._kind = kind
        self._clock = clock
        self._changed = changed
        self._serves = [quota_pb2.WatchPoliciesRequest.Served(model=model, pool=pool) for model, pool in serves]
        self._ready = asyncio.Event()
        self._lost_at: float | None = clock.monotonic()

    @property
    def ready(self) -> bool:
        """Whether a first snapshot has come."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Returns once a first snapshot has come."""
        await self._ready.wait()

    def cut_off_for(self) -> float:
        """Returns for how many seconds the watch has been broken; 0 while it is open."""
        return 0.0 if self._lost_at is None else self._clock.monotonic() - self._lost_at

    async def run(self) -> None:
        """Follows until cancelled."""
        await follow("policies", self._open, self._received, self._ended)

    def _open(self) -> grpc.aio.UnaryStreamCall[quota_pb2.WatchPoliciesRequest, quota_pb2.WatchPoliciesResponse]:
        self.cache.begin()
        request = quota_pb2.WatchPoliciesRequest(
            watcher=self._watcher, kind=self._kind, known_version=self.cache.version, serves=self._serves
        )
        return self._stub.WatchPolicies(request)

    def _received(self, message: quota_pb2.WatchPoliciesResponse) -> None:
        self._lost_at = None
        if self.cache.apply(message):
            self._ready.set()
            self._changed()

    def _ended(self) -> None:
        self._lost_at = self._lost_at if self._lost_at is not None else self._clock.monotonic()
