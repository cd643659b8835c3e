"""Policies as messages and in the cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.policy.messages import from_pb_key, from_pb_tenant, to_pb_key, to_pb_tenant
from forebay.policy.model import KeyPolicy, Limits, LossPolicy, ServiceClass, TenantPolicy, Thresholds
from forebay.policy.watcher import PolicyCache, PolicyWatcher
from forebay.testing.clock import FakeClock

names = st.text("abcdefghij-", min_size=1, max_size=8)
limits = st.builds(Limits, *[st.none() | st.integers(0, 2**60)] * len(Limits.__dataclass_fields__))
tenants = st.builds(
    TenantPolicy,
    tenant_id=names,
    plan=names,
    service_class=st.sampled_from(ServiceClass),
    weight_milli=st.integers(1, 10**6),
    limits=limits,
    model_limits=st.dictionaries(names, limits, max_size=2),
    models=st.none() | st.lists(names, max_size=2).map(tuple),
    system_prompt=st.text(max_size=20),
    suspended=st.booleans(),
    loss_policy=st.sampled_from(LossPolicy),
    thresholds=st.builds(Thresholds, *[st.integers(1, 200)] * 3),
    isolation_key=st.binary(min_size=32, max_size=32),
    alert_percent=st.integers(1, 100),
)
keys = st.builds(
    KeyPolicy,
    key_id=names,
    tenant_id=names,
    hash=st.binary(min_size=32, max_size=32),
    expires_at=st.none() | st.integers(0, 4 * 10**9).map(float),
    revoked=st.booleans(),
    models=st.none() | st.lists(names, max_size=2).map(tuple),
    limits=limits,
)

ACME = TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500)
KEY = KeyPolicy("k1", "acme", b"h" * 32)


@given(tenants)
def test_a_tenant_survives_the_wire(tenant: TenantPolicy) -> None:
    assert from_pb_tenant(to_pb_tenant(tenant)) == tenant


@given(keys)
def test_a_key_survives_the_wire(key: KeyPolicy) -> None:
    assert from_pb_key(to_pb_key(key)) == key


@pytest.mark.parametrize(
    ("models", "used"), [(None, True), (("a",), True), (("a", "b"), True), ((), False), (("b",), False)]
)
def test_no_list_allows_every_model_and_an_empty_one_none(models: tuple[str, ...] | None, used: bool) -> None:
    tenant, key = replace(ACME, models=models), replace(KEY, models=models)
    assert (from_pb_tenant(to_pb_tenant(tenant)).may_use("a"), from_pb_key(to_pb_key(key)).may_use("a")) == (used, used)


def test_an_empty_list_of_an_earlier_release_allows_every_model() -> None:
    assert from_pb_tenant(quota_pb2.TenantPolicy(tenant_id="acme")).models is None
    assert from_pb_key(quota_pb2.KeyPolicy(key_id="k", models=["a"])).models == ("a",)


def test_a_snapshot_takes_effect_whole_and_changes_follow() -> None:
    cache = PolicyCache()
    page = quota_pb2.WatchPoliciesResponse
    assert not cache.apply(page(version=1, snapshot_begin=True, tenants=[to_pb_tenant(ACME)]))
    assert cache.tenants == {}
    assert cache.apply(page(version=1, snapshot_end=True, keys=[to_pb_key(KEY)]))
    assert (cache.tenants, cache.keys, cache.version) == ({"acme": ACME}, {"k1": KEY}, 1)
    slower = replace(ACME, weight_milli=100)
    assert cache.apply(page(version=2, tenants=[to_pb_tenant(slower)]))
    assert cache.tenants == {"acme": slower}
    assert cache.apply(page(version=3, removed_tenants=["acme"]))
    assert (cache.tenants, cache.keys, cache.version) == ({}, {}, 3)


def test_a_snapshot_that_broke_off_is_not_continued_by_the_next_watch() -> None:
    cache = PolicyCache()
    page = quota_pb2.WatchPoliciesResponse
    cache.apply(page(version=1, snapshot_begin=True, snapshot_end=True))
    cache.apply(page(version=5, snapshot_begin=True, tenants=[to_pb_tenant(ACME)]))
    cache.begin()  # and the next replica of quota is at the version that the watcher has
    assert cache.apply(page(version=1))
    assert cache.apply(page(version=2, keys=[to_pb_key(KEY)]))
    assert (cache.tenants, cache.keys, cache.version) == ({}, {"k1": KEY}, 2)


async def test_a_watcher_begins_each_watch_afresh(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.rpc.watch.FIRST_BACKOFF_S", 0.0)
    page, changed = quota_pb2.WatchPoliciesResponse, asyncio.Semaphore(0)
    watches = iter(
        [
            [page(version=1, snapshot_begin=True, snapshot_end=True)],
            [page(version=5, snapshot_begin=True)],  # breaks off
            [page(version=1), page(version=2, tenants=[to_pb_tenant(ACME)])],
        ]
    )

    class Watch:
        async def __aiter__(self) -> AsyncIterator[quota_pb2.WatchPoliciesResponse]:
            for message in next(watches, ()):
                yield message

        def cancel(self) -> None:
            """It has ended."""

    channel = SimpleNamespace(unary_stream=lambda *_, **__: lambda _: Watch())
    kind = quota_pb2.WATCHER_KIND_ROUTER
    watcher = PolicyWatcher(channel, common_pb2.Peer(), kind, clock, changed.release)  # type: ignore[arg-type]
    running = asyncio.create_task(watcher.run())
    async with asyncio.timeout(5):
        for _ in range(3):
            await changed.acquire()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (watcher.cache.tenants, watcher.cache.version) == ({"acme": ACME}, 2)


def test_a_new_snapshot_forgets_what_is_gone() -> None:
    cache = PolicyCache()
    both = {"snapshot_begin": True, "snapshot_end": True}
    cache.apply(quota_pb2.WatchPoliciesResponse(version=1, tenants=[to_pb_tenant(ACME)], **both))
    cache.apply(quota_pb2.WatchPoliciesResponse(version=9, **both))
    assert (cache.tenants, cache.version) == ({}, 9)
