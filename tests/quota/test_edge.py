"""Envoy's RateLimitService: the window that it takes from, and the service over a loopback connection."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import grpc
import pytest
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.errors import Code
from forebay.policy.keys import hash_key, new_key
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.edge import COUNTED_AS, Taken, edge_row
from forebay.quota.domain.limits import Kind, Row, Usage, rows_of
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.quota.edge import Edge
from forebay.quota.edge_servicer import EdgeServicer
from forebay.quota.policies import PolicyFeed
from forebay.quota.redis_counters import RedisCounters
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error
from forebay.testing.clock import FakeClock

PEPPER = b"a pepper of tests"
OK, OVER_LIMIT = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT
subjects = itertools.count()


def row(amount: int, value: int = 5) -> Row:
    return Row("tenant:acme", COUNTED_AS, Kind.WINDOW, value, amount)


async def test_a_window_is_taken_from_without_a_reservation(store: CounterStore, clock: FakeClock) -> None:
    assert await store.take("acme", row(3)) == Taken(True, 3, 61_000)
    clock.advance(30)
    assert await store.take("acme", row(2)) == Taken(True, 5, 31_000)
    assert await store.take("acme", row(4)) == Taken(False, 5, 61_000)
    assert await store.take("acme", row(1)) == Taken(False, 5, 31_000)
    assert await store.take("acme", row(9)) == Taken(False, 5, 61_000)
    clock.advance(31)
    assert await store.take("acme", row(4)) == Taken(False, 2, 30_000)
    assert await store.take("acme", row(3)) == Taken(True, 5, 30_000)
    clock.advance(100)
    assert await store.take("acme", row(0)) == Taken(True, 0, 0)
    assert await store.reservations("acme", "", 9) == []


async def test_the_edge_and_the_router_count_apart(store: CounterStore, tenant: TenantPolicy) -> None:
    edge = edge_row(tenant, 1)
    assert edge is not None
    for n in range(5):
        assert (await store.take("acme", edge)).admitted
        rows = [row for row in rows_of(tenant, Usage(1, 1, 1)) if row.kind is Kind.WINDOW]
        order = Order(f"{n:032}", Router("router-1", 1), 1, 1)
        assert not (await store.reserve("acme", order, rows)).violations
    assert not (await store.take("acme", edge)).admitted


def test_no_limit_is_no_row() -> None:
    assert edge_row(TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500), 1) is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.tuples(st.integers(-500, 40_000), st.integers(0, 7), st.sampled_from([5, 5, 3])), max_size=20)
)
async def test_the_script_equals_the_specification(redis_counters: RedisCounters, history: list[Any]) -> None:
    now_ms, tenant = 1_700_000_000_000, f"edge-{next(subjects)}"
    specification = InMemoryCounters(Terms(), lambda: now_ms, all_new=False)
    redis_counters._now = lambda: now_ms
    for store in (specification, redis_counters):
        await store.begin(tenant, lost=False)
    for after_ms, amount, value in history:
        now_ms += after_ms
        taken = await specification.take(tenant, row(amount, value))
        assert await redis_counters.take(tenant, row(amount, value)) == taken


def some_tenant(tenant_id: str, limit: int | None = 3, **fields: Any) -> TenantPolicy:
    limits = Limits(requests_per_minute=limit)
    return TenantPolicy(tenant_id, "basic", ServiceClass.BRONZE, 500, limits=limits, **fields)


class Keys:
    """A key of each sort."""

    def __init__(self, clock: FakeClock) -> None:
        self.policies: dict[str, KeyPolicy] = {}
        self.good = self.add("acme")
        self.revoked = self.add("acme", revoked=True)
        self.expired = self.add("acme", expires_at=clock.now() - 1)
        self.unlimited = self.add("free")
        self.wrong = self.good[:-1] + ("A" if self.good[-1] != "A" else "B")

    def add(self, tenant_id: str, **fields: Any) -> str:
        key_id, key = new_key()
        self.policies[key_id] = KeyPolicy(key_id, tenant_id, hash_key(PEPPER, key), **fields)
        return key


@pytest.fixture
def keys(clock: FakeClock) -> Keys:
    return Keys(clock)


@pytest.fixture
async def edge(keys: Keys, clock: FakeClock) -> AsyncIterator[Any]:
    tenants = {tenant.tenant_id: tenant for tenant in (some_tenant("acme"), some_tenant("free", None))}
    feed = PolicyFeed(Policies(tenants, keys.policies, {}), clock)
    counters = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000))
    server = RpcServer("127.0.0.1:0")
    server.add(
        rls_pb2_grpc.add_RateLimitServiceServicer_to_server,
        EdgeServicer(Edge(feed, counters, PEPPER, clock)),
        "envoy.service.ratelimit.v3.RateLimitService",
    )
    await server.start()
    async with connect(server.address, caller="test") as channel:
        yield rls_pb2_grpc.RateLimitServiceStub(channel)
    await server.drain(0)


def descriptor(*entries: tuple[str, str], **fields: Any) -> ratelimit_pb2.RateLimitDescriptor:
    return ratelimit_pb2.RateLimitDescriptor(
        entries=[ratelimit_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries], **fields
    )


def asked(*descriptors: ratelimit_pb2.RateLimitDescriptor, domain: str = "forebay", **fields: Any) -> Any:
    return rls_pb2.RateLimitRequest(domain=domain, descriptors=descriptors, **fields)


async def test_a_key_is_held_to_its_tenants_requests_per_minute(edge: Any, keys: Keys, clock: FakeClock) -> None:
    mine = asked(descriptor(("authorization", f"Bearer {keys.good}")))
    remaining = []
    for _ in range(3):
        answer = await edge.ShouldRateLimit(mine)
        assert answer.overall_code == OK
        remaining.append(answer.statuses[0].limit_remaining)
    assert remaining == [2, 1, 0]
    answer = await edge.ShouldRateLimit(mine)
    (status,) = answer.statuses
    assert (answer.overall_code, status.code, status.limit_remaining) == (OVER_LIMIT, OVER_LIMIT, 0)
    assert (status.current_limit.requests_per_unit, status.current_limit.unit) == (
        3,
        rls_pb2.RateLimitResponse.RateLimit.MINUTE,
    )
    assert status.duration_until_reset.seconds == 61
    clock.advance(61)
    assert (await edge.ShouldRateLimit(mine)).overall_code == OK


async def test_hits_count_as_so_many_requests(edge: Any) -> None:
    by_name = descriptor(("tenant", "acme"))
    assert (await edge.ShouldRateLimit(asked(by_name, hits_addend=2))).statuses[0].limit_remaining == 1
    by_name.hits_addend.value = 0
    assert (await edge.ShouldRateLimit(asked(by_name, hits_addend=2))).statuses[0].limit_remaining == 1
    by_name.hits_addend.value = 2
    answer = await edge.ShouldRateLimit(asked(descriptor(("x", "y")), by_name))
    assert [status.code for status in answer.statuses] == [OK, OVER_LIMIT]
    assert answer.overall_code == OVER_LIMIT


async def test_what_is_not_understood_is_let_through(edge: Any, keys: Keys) -> None:
    good = ("authorization", f"Bearer {keys.good}")
    unknown = [
        descriptor(),
        descriptor(("remote_address", "10.0.0.1")),
        descriptor(good, good),
        descriptor(("tenant", "nobody")),
        descriptor(("authorization", "Bearer nonsense")),
        *(descriptor(("authorization", f"Bearer {key}")) for key in (keys.wrong, keys.revoked, keys.expired)),
    ]
    answer = await edge.ShouldRateLimit(asked(*unknown, hits_addend=100))
    assert {status.code for status in answer.statuses} == {OK}
    assert not any(status.HasField("current_limit") for status in answer.statuses)
    for request in (
        asked(descriptor(good), domain="another", hits_addend=100),
        asked(descriptor(("authorization", f"Bearer {keys.unlimited}")), hits_addend=100),
        asked(),
    ):
        assert (await edge.ShouldRateLimit(request)).overall_code == OK


@pytest.mark.parametrize("request_", [asked(*[descriptor()] * 9), asked(descriptor(), hits_addend=2**32 - 1)])
async def test_what_is_too_much_is_refused(edge: Any, request_: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.ShouldRateLimit(request_)
    assert from_rpc_error(caught.value).code is Code.INVALID_ARGUMENT


async def test_a_proxy_may_not_name_tenants(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.quota.edge_servicer.caller", ContextVar("caller", default="edge"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.ShouldRateLimit(asked(descriptor(("tenant", "acme"))))
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "TENANT_NOT_BELIEVED")
