"""Envoy's RateLimitService: the window that it takes from, and the service over a loopback connection."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.api.quota.v1 import rate_limit_pb2, rate_limit_pb2_grpc
from forebay.errors import Code
from forebay.policy.keys import hash_key, new_key
from forebay.policy.model import Canary, CanaryStep, KeyPolicy, Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import CounterStore, InMemoryCounters
from forebay.quota.domain.edge import Taken, edge_rows
from forebay.quota.domain.limits import Kind, Row, Usage, rows_of
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.quota.edge import Edge
from forebay.quota.edge_servicer import ENVOYS_NAME, FULL_NAME, EdgeServicer, add_edge_servicer_to_server
from forebay.quota.policies import PolicyFeed
from forebay.quota.redis_counters import RedisCounters
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error, from_status
from forebay.testing.clock import FakeClock

PEPPER = b"a pepper of tests"
Response = rate_limit_pb2.ShouldRateLimitResponse
OK, OVER_LIMIT = Response.CODE_OK, Response.CODE_OVER_LIMIT
subjects = itertools.count()


def minute(amount: int, value: int = 5) -> Row:
    return Row("tenant:acme", "envoy_requests_per_minute", Kind.WINDOW, value, amount)


def second(amount: int, value: int = 2) -> Row:
    return Row("tenant:acme", "envoy_requests_per_second", Kind.RATE, value, amount)


async def test_a_window_is_taken_from_without_a_reservation(store: CounterStore, clock: FakeClock) -> None:
    async def take(row: Row) -> Taken:
        (taken,) = await store.take("acme", [row])
        return taken

    assert await take(minute(3)) == Taken(True, 3, 61_000)
    clock.advance(30)
    assert await take(minute(2)) == Taken(True, 5, 31_000)
    assert await take(minute(4)) == Taken(False, 5, 61_000)
    assert await take(minute(1)) == Taken(False, 5, 31_000)
    assert await take(minute(9)) == Taken(False, 5, 61_000)
    clock.advance(31)
    assert await take(minute(4)) == Taken(False, 2, 30_000)
    assert await take(minute(3)) == Taken(True, 5, 30_000)
    clock.advance(100)
    assert await take(minute(0)) == Taken(True, 0, 0)
    assert await store.reservations("acme", "", 9) == []


async def test_of_a_rate_and_a_window_both_are_taken_or_neither(store: CounterStore, clock: FakeClock) -> None:
    async def take(amount: int) -> list[Taken]:
        return list(await store.take("acme", [second(amount), minute(amount)]))

    assert await take(1) == [Taken(True, 1, 500), Taken(True, 1, 61_000)]
    assert await take(3) == [Taken(False, 1, 500), Taken(True, 1, 61_000)]  # more than the rate ever has room for
    assert await take(1) == [Taken(True, 2, 500), Taken(True, 2, 61_000)]
    assert await take(2) == [Taken(False, 2, 1_000), Taken(True, 2, 61_000)]
    clock.advance(0.25)
    assert await take(1) == [Taken(False, 2, 250), Taken(True, 2, 60_750)]
    for _ in range(3):
        clock.advance(0.5)
        assert (await take(1))[1].room
    clock.advance(2)
    assert await take(1) == [Taken(True, 0, 0), Taken(False, 5, 57_250)]
    assert (await take(0))[0] == Taken(True, 0, 0)  # nothing of the rate was taken then


async def test_the_edge_and_the_router_count_apart(store: CounterStore, tenant: TenantPolicy) -> None:
    for n in range(5):
        assert all(taken.room for taken in await store.take("acme", edge_rows(tenant, 1)))
        rows = [row for row in rows_of(tenant, Usage(1, 1, 1)) if row.kind is Kind.WINDOW]
        order = Order(f"{n:032}", Router("router-1", 1), 1, 1)
        assert not (await store.reserve("acme", order, rows)).violations
    assert not any(taken.room for taken in await store.take("acme", edge_rows(tenant, 1)))


def test_no_limit_is_no_row() -> None:
    assert edge_rows(TenantPolicy("acme", "basic", ServiceClass.BRONZE, 500), 1) == ()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(
        st.tuples(
            st.integers(-500, 1_500) | st.integers(0, 40_000),
            st.integers(0, 7),
            st.sampled_from([5, 5, 3]),
            st.booleans(),
        ),
        max_size=20,
    )
)
async def test_the_script_equals_the_specification(redis_counters: RedisCounters, history: list[Any]) -> None:
    now_ms, tenant = 1_700_000_000_000, f"edge-{next(subjects)}"
    specification = InMemoryCounters(Terms(), lambda: now_ms, all_new=False)
    redis_counters._now = lambda: now_ms
    for store in (specification, redis_counters):
        await store.begin(tenant, lost=False)
    for after_ms, amount, value, both in history:
        now_ms += after_ms
        rows = [second(amount, value), minute(amount, 2 * value)][: 1 + both]
        assert await redis_counters.take(tenant, rows) == await specification.take(tenant, rows)


def some_tenant(tenant_id: str, a_minute: int | None = 3, a_second: int | None = None) -> TenantPolicy:
    limits = Limits(requests_per_minute=a_minute, requests_per_second=a_second)
    return TenantPolicy(tenant_id, "basic", ServiceClass.BRONZE, 500, limits=limits)


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
    new = replace(some_tenant("new", 10), canary=Canary(clock.now(), (CanaryStep(20, 600),)))
    some = (some_tenant("acme"), some_tenant("free", None), some_tenant("quick", 3, 2), new)
    tenants = {tenant.tenant_id: tenant for tenant in some}
    feed = PolicyFeed(Policies(tenants, keys.policies, {}), clock)
    counters = InMemoryCounters(Terms(), lambda: int(clock.now() * 1000))
    server = RpcServer("127.0.0.1:0")
    server.add(
        add_edge_servicer_to_server,
        EdgeServicer(Edge(feed, counters, PEPPER, clock)),
        FULL_NAME,
    )
    await server.start()
    async with connect(server.address, caller="test") as channel:
        stub = rate_limit_pb2_grpc.RateLimitServiceStub(channel)
        stub.channel = channel
        yield stub
    await server.drain(0)


def descriptor(*entries: tuple[str, str], **fields: Any) -> rate_limit_pb2.RateLimitDescriptor:
    return rate_limit_pb2.RateLimitDescriptor(
        entries=[rate_limit_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries], **fields
    )


def asked(*descriptors: rate_limit_pb2.RateLimitDescriptor, domain: str = "forebay", **fields: Any) -> Any:
    return rate_limit_pb2.ShouldRateLimitRequest(domain=domain, descriptors=descriptors, **fields)


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
        Response.RateLimit.UNIT_MINUTE,
    )
    assert status.duration_until_reset.seconds == 61
    clock.advance(61)
    assert (await edge.ShouldRateLimit(mine)).overall_code == OK


async def test_a_new_tenant_is_held_to_its_share(edge: Any, clock: FakeClock) -> None:
    ask = asked(descriptor(("tenant", "new")))
    assert [(await edge.ShouldRateLimit(ask)).overall_code for _ in range(3)] == [OK, OK, OVER_LIMIT]
    clock.advance(600)
    (status,) = (await edge.ShouldRateLimit(ask)).statuses
    assert (status.code, status.current_limit.requests_per_unit) == (OK, 10)


async def test_a_tenant_is_held_to_its_requests_per_second_too(edge: Any, clock: FakeClock) -> None:
    units = Response.RateLimit

    async def ask(hits: int = 1) -> tuple[Any, ...]:
        answer = await edge.ShouldRateLimit(asked(descriptor(("tenant", "quick")), hits_addend=hits))
        (status,) = answer.statuses
        limit = status.current_limit
        told = (limit.name, limit.requests_per_unit, limit.unit, status.limit_remaining)
        return (answer.overall_code, *told, status.duration_until_reset.seconds)

    rate, window = (
        ("envoy_requests_per_second", 2, units.UNIT_SECOND),
        ("envoy_requests_per_minute", 3, units.UNIT_MINUTE),
    )
    assert await ask() == (OK, *rate, 1, 1)
    assert await ask() == (OK, *rate, 0, 1)
    assert await ask() == (OVER_LIMIT, *rate, 0, 1)
    clock.advance(0.5)
    assert await ask() == (OK, *rate, 0, 1)
    assert await ask() == (OVER_LIMIT, *window, 0, 61)  # both refuse, and the minute does so for longer
    clock.advance(61)
    assert await ask(2) == (OK, *rate, 0, 1)


async def test_a_refusal_names_every_limit_as_a_router_does(edge: Any) -> None:
    for _ in range(2):
        answer = await edge.ShouldRateLimit(asked(descriptor(("tenant", "quick")), hits_addend=4))
    (header,) = answer.response_headers_to_add
    error = from_status(status_pb2.Status.FromString(base64.b64decode(header.value + "==")))
    assert error.reason == "REQUESTS_PER_SECOND"
    assert [violation.limit for violation in error.quota_violations] == ["requests_per_second", "requests_per_minute"]


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


def field(number: int, value: bytes | int) -> bytes:
    """Returns a field as it is on the wire: bytes for a text or a message, a small number for everything else."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


async def test_envoys_own_bytes_are_understood_at_the_path_that_envoy_calls(edge: Any) -> None:
    """Written out by hand, so that no number of the contract can change unseen; fields that quota has no use for among them."""
    entry = field(1, b"tenant") + field(2, b"quick")
    override = field(1, 7) + field(2, 2)
    descriptor = field(1, entry) + field(2, override) + field(3, field(1, 2)) + field(9, b"of a later release")
    request = field(1, b"forebay") + field(2, descriptor) + field(3, 9) + field(15, b"of a later release")
    call = edge.channel.unary_unary(f"/{ENVOYS_NAME}/ShouldRateLimit")
    limit = field(1, 2) + field(2, 1) + field(3, b"envoy_requests_per_second")
    status = field(1, 1) + field(2, limit) + field(4, field(1, 1))
    assert await call(request) == field(1, 1) + field(2, status)
    limit = field(1, 3) + field(2, 2) + field(3, b"envoy_requests_per_minute")
    status = field(1, 2) + field(2, limit) + field(3, 1) + field(4, field(1, 61))
    refused = await call(request)
    assert refused.startswith(field(1, 2) + field(2, status))
    key = field(1, b"grpc-status-details-bin")
    header, body = (
        refused.index(b"\x1a", len(field(1, 2) + field(2, status))),
        refused.index(b"tenant quick may use "),
    )
    assert header < refused.index(key) < body
    assert refused[body - 2] == 5 << 3 | 2 or refused[body - 3] == 5 << 3 | 2  # one or two bytes say its length


async def test_hits_that_are_given_back_are_not_counted(edge: Any) -> None:
    back = descriptor(("tenant", "acme"), is_negative_hits=True)
    back.hits_addend.value = 2
    assert [(await edge.ShouldRateLimit(asked(back))).statuses[0].limit_remaining for _ in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer ", " bearer"])
async def test_the_scheme_of_a_key_is_case_insensitive(edge: Any, keys: Keys, scheme: str) -> None:
    answer = await edge.ShouldRateLimit(asked(descriptor(("authorization", f"{scheme} {keys.good}"))))
    assert answer.statuses[0].limit_remaining == 2
