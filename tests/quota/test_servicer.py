"""The three services over a loopback connection, with the specification as the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from forebay import killpoints
from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2 as pb
from forebay.api.quota.v1 import quota_pb2_grpc
from forebay.errors import Code, MeshError, QuotaViolation
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy, Thresholds
from forebay.policy.watcher import PolicyCache, PolicyWatcher
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.directory import Overrides
from forebay.quota.domain.plans import Plan
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.reservations import Terms
from forebay.quota.domain.safety import Ask
from forebay.quota.local_shares import LocalShares
from forebay.quota.policies import PolicyFeed
from forebay.quota.policy_servicer import PolicyServicer
from forebay.quota.prices import Prices
from forebay.quota.safety import InMemorySafety
from forebay.quota.safety_gate import SafetyGate
from forebay.quota.served import Served
from forebay.quota.service import Quota
from forebay.quota.servicer import QuotaServicer
from forebay.quota.tenant_servicer import TenantServicer
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_pb_error, from_rpc_error
from forebay.telemetry import tracing
from forebay.testing.clock import FakeClock

ROUTER = common_pb2.Peer(id="router-1", incarnation=7)
LIMITS = Limits(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=2)
GLOBAL_LIMIT = 1_000
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = common_pb2.TraceContext(traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01")


def tenant(tenant_id: str, **fields: Any) -> TenantPolicy:
    return TenantPolicy(
        tenant_id,
        "basic",
        ServiceClass.BRONZE,
        500,
        limits=LIMITS,
        isolation_key=b"i" * 32,
        system_prompt="Be brief.",
        **fields,
    )


def policies(*tenants: TenantPolicy, keys: Sequence[KeyPolicy] = ()) -> Policies:
    plans = [Plan(name, ServiceClass.BRONZE, 500, LIMITS, 2_000_000_000, 90) for name in ("basic", "more")]
    return Policies(
        {tenant.tenant_id: tenant for tenant in tenants},
        {key.key_id: key for key in keys},
        {plan.name: plan for plan in plans},
    )


class Counters(InMemoryCounters):
    """The twin, with an outage and a slow settlement at will."""

    away = False
    waiting = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.settling = asyncio.Event()
        self.may_settle = asyncio.Event()
        self.may_settle.set()

    async def reserve(self, *arguments: Any) -> Any:
        if self.away:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away", retry_after=1.0)
        return await super().reserve(*arguments)

    async def settle(self, *arguments: Any) -> bool:
        self.settling.set()
        self.waiting += 1
        await self.may_settle.wait()
        self.waiting -= 1
        return await super().settle(*arguments)


@pytest.fixture
def counters(clock: FakeClock) -> Counters:
    return Counters(Terms(), lambda: int(clock.now() * 1000))


@pytest.fixture
def safety(clock: FakeClock) -> InMemorySafety:
    return InMemorySafety(lambda: int(clock.now() * 1000))


@pytest.fixture
def feed(clock: FakeClock) -> PolicyFeed:
    suspended = tenant("hooli", suspended=True)
    return PolicyFeed(policies(tenant("acme"), suspended, keys=[KeyPolicy("k1", "acme", b"h" * 32)]), clock)


@pytest.fixture
def looked_up() -> list[str]:
    return []


@pytest.fixture
async def shares(feed: PolicyFeed, counters: Counters, clock: FakeClock, tmp_path: Path) -> AsyncIterator[LocalShares]:
    shares = LocalShares(
        feed, counters, Prices(), clock, replicas=1, lease_s=60.0, global_limit=0, file=tmp_path / "shares"
    )
    async with background(shares.run(), "shares"):
        yield shares


@pytest.fixture
async def channel(
    feed: PolicyFeed,
    counters: Counters,
    safety: InMemorySafety,
    clock: FakeClock,
    looked_up: list[str],
    shares: LocalShares,
) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer("127.0.0.1:0")
    package = "forebay.api.quota.v1."

    async def look_up(request_id: str) -> None:
        looked_up.append(request_id)

    gate = SafetyGate(safety, clock, GLOBAL_LIMIT)
    quota = QuotaServicer(Quota(feed, counters, now=clock.now, gate=gate, look_up=look_up), clock, 30.0, shares=shares)
    server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, quota, package + "QuotaService")
    policy = PolicyServicer(feed)
    server.add(quota_pb2_grpc.add_PolicyServiceServicer_to_server, policy, package + "PolicyService")
    server.add(
        quota_pb2_grpc.add_TenantServiceServicer_to_server, TenantServicer(feed, clock), package + "TenantService"
    )
    await server.start()
    async with connect(server.address, caller="test") as channel:
        yield channel
    await server.drain(0)


@pytest.fixture
def quota(channel: grpc.aio.Channel) -> quota_pb2_grpc.QuotaServiceAsyncStub:
    return quota_pb2_grpc.QuotaServiceStub(channel)


@pytest.fixture
def policy(channel: grpc.aio.Channel) -> quota_pb2_grpc.PolicyServiceAsyncStub:
    return quota_pb2_grpc.PolicyServiceStub(channel)


@pytest.fixture
def tenants(channel: grpc.aio.Channel) -> quota_pb2_grpc.TenantServiceAsyncStub:
    return quota_pb2_grpc.TenantServiceStub(channel)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    return exporter


def reserve(name: str, **fields: Any) -> pb.ReserveRequest:
    values = {"tenant_id": "acme", "prompt_tokens": 10, "max_completion_tokens": 20, "router": ROUTER, **fields}
    return pb.ReserveRequest(request_id=name * 32, **values)


def settle(name: str, **fields: Any) -> pb.SettleRequest:
    values = {"tenant_id": "acme", "prompt_tokens": 10, "completion_tokens": 5, "started": True, **fields}
    return pb.SettleRequest(request_id=name * 32, router=ROUTER, **values)


async def error_of(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_reserve_and_settle(quota: Any) -> None:
    reservation = (await quota.Reserve(reserve("a"))).reservation
    assert (reservation.request_id, reservation.lease.seconds) == ("a" * 32, 30)
    assert (await quota.Settle(settle("a"))).applied
    assert not (await quota.Settle(settle("a"))).applied
    limits = (await quota.Peek(pb.PeekRequest(tenant_id="acme"))).limits
    assert {state.limit: (state.subject, state.value, state.used) for state in limits} == {
        "requests_per_minute": ("tenant:acme", 5, 1),
        "tokens_per_minute": ("tenant:acme", 100, 15),
        "concurrent_requests": ("tenant:acme", 2, 0),
    }
    resets_in = {state.limit: state.resets_in.seconds for state in limits if state.HasField("resets_in")}
    assert resets_in == {"requests_per_minute": 61, "tokens_per_minute": 61}


async def test_an_admission_between_the_thresholds_carries_its_warning_and_its_pace(
    quota: Any, feed: PolicyFeed
) -> None:
    thresholds = Thresholds(warn_percent=10, throttle_percent=10, hard_percent=100)
    feed.publish(policies(tenant("acme", thresholds=thresholds)))
    reservation = (await quota.Reserve(reserve("a", max_completion_tokens=10))).reservation
    assert "tenant:acme/tokens_per_minute" in reservation.warnings
    # Ten tokens too many, at a hundred a minute.
    assert reservation.start_after.ToMilliseconds() == 6_000


async def test_a_refusal_carries_its_details(quota: Any) -> None:
    await quota.Reserve(reserve("a", max_completion_tokens=80))
    error = await error_of(quota.Reserve(reserve("b")))
    assert (error.code, error.reason, error.retry_after) == (Code.RESOURCE_EXHAUSTED, "TOKENS_PER_MINUTE", 1.0)
    assert error.quota_violations == (QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 30),)


async def test_the_limit_above_all_tenants_refuses_before_a_tenants_own(
    quota: Any, safety: InMemorySafety, clock: FakeClock
) -> None:
    await safety.grant(GLOBAL_LIMIT, Ask(GLOBAL_LIMIT))  # as other replicas may
    error = await error_of(quota.Reserve(reserve("a", max_completion_tokens=80)))
    assert (error.code, error.reason, error.retry_after) == (Code.RESOURCE_EXHAUSTED, "GLOBAL_LIMIT", 1.11)
    violation = QuotaViolation("mesh", "global_requests_per_second", GLOBAL_LIMIT, GLOBAL_LIMIT, 1)
    assert error.quota_violations == (violation,)
    clock.advance(1.11)
    await quota.Reserve(reserve("a", max_completion_tokens=80))


async def test_death_can_be_had_when_the_counters_know_and_the_router_does_not(
    quota: Any, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, int]] = []

    def reached(point: str) -> None:
        passed.append((point, len(counters._tenants["acme"].reservations(1, "", 10))))

    monkeypatch.setattr(killpoints, "reached", reached)
    await quota.Reserve(reserve("a"))
    await quota.Settle(settle("a"))
    await error_of(quota.Reserve(reserve("b", tenant_id="nobody")))
    assert passed == [("quota.after_reserve", 1), ("quota.after_settle", 0)]


async def test_a_request_that_can_never_fit_is_an_invalid_argument(quota: Any) -> None:
    error = await error_of(quota.Reserve(reserve("a", max_completion_tokens=91)))
    assert (error.code, error.reason, error.retry_after) == (Code.INVALID_ARGUMENT, "LARGER_THAN_LIMIT", None)
    assert error.metadata == {"tokens_per_minute": "100"}


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"tenant_id": "nobody"}, Code.NOT_FOUND, "TENANT_NOT_FOUND"),
        ({"tenant_id": "hooli"}, Code.PERMISSION_DENIED, "TENANT_SUSPENDED"),
        ({"tenant_id": "{acme}"}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"prompt_tokens": -1}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"max_completion_tokens": 2**62}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"router": common_pb2.Peer(id="a b", incarnation=1)}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"router": common_pb2.Peer(id="router-1")}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_bad_reserves_are_refused_by_name(quota: Any, fields: dict[str, Any], code: Code, reason: str) -> None:
    error = await error_of(quota.Reserve(reserve("a", **fields)))
    assert (error.code, error.reason) == (code, reason)
    assert bool(error.field_violations) == (code is Code.INVALID_ARGUMENT)


async def test_every_bad_field_is_named(quota: Any) -> None:
    error = await error_of(quota.Settle(settle("x", completion_tokens=-1)))
    assert [violation.field for violation in error.field_violations] == ["request_id", "completion_tokens"]


async def test_a_request_id_of_another_router_is_taken(quota: Any) -> None:
    await quota.Reserve(reserve("a"))
    await quota.Reserve(reserve("a"))
    error = await error_of(quota.Reserve(reserve("a", router=common_pb2.Peer(id="router-1", incarnation=8))))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_TAKEN")


async def test_renew_names_what_is_lost(quota: Any) -> None:
    await quota.Reserve(reserve("a"))
    leases = [
        pb.RenewRequest.Lease(request_id=name * 32, tenant_id=tenant_id)
        for name, tenant_id in (("a", "acme"), ("b", "acme"), ("c", "gone"))
    ]
    answer = await quota.Renew(pb.RenewRequest(router=ROUTER, leases=leases))
    assert (answer.lease.seconds, sorted(answer.lost)) == (30, ["b" * 32, "c" * 32])
    error = await error_of(quota.Renew(pb.RenewRequest(router=ROUTER, leases=leases * 4_000)))
    assert [violation.field for violation in error.field_violations] == ["leases"]


async def test_reservations_are_listed_in_pages(quota: Any) -> None:
    await quota.Reserve(reserve("b"))
    await quota.Reserve(reserve("a"))
    first = await quota.ListReservations(pb.ListReservationsRequest(tenant_id="acme", page_size=1))
    second = await quota.ListReservations(
        pb.ListReservationsRequest(tenant_id="acme", page_size=1, page_token=first.next_page_token)
    )
    states = [*first.reservations, *second.reservations]
    assert [state.request_id[0] for state in states] == ["a", "b"]
    assert second.next_page_token == ""
    assert (states[0].state, states[0].router, states[0].prompt_tokens) == ("held", ROUTER, 10)
    assert states[0].expires_at.seconds - states[0].reserved_at.seconds == 30
    error = await error_of(quota.ListReservations(pb.ListReservationsRequest(tenant_id="acme", page_size=1_001)))
    assert error.code is Code.INVALID_ARGUMENT


async def test_a_traced_request_has_spans_of_this_process(quota: Any, spans: InMemorySpanExporter) -> None:
    await quota.Reserve(reserve("a", trace=TRACE))
    await quota.Settle(settle("a", trace=TRACE))
    await error_of(quota.Reserve(reserve("b", tenant_id="nobody", trace=TRACE)))
    await quota.Reserve(reserve("c"))  # not traced
    own = [span for span in spans.get_finished_spans() if span.kind is SpanKind.INTERNAL]  # the server has its own
    seen = [(span.name, span.attributes["forebay.outcome"]) for span in own]
    assert seen == [("quota.reserve", "OK"), ("quota.settle", "OK"), ("quota.reserve", "TENANT_NOT_FOUND")]
    for span in own:
        assert (format(span.context.trace_id, "032x"), span.parent.span_id) == (TRACE_ID, 0xB7AD6B7169203331)


class Talk:
    """A router's end of a session that gathers the answers."""

    def __init__(self, quota: Any) -> None:
        self.call = quota.Session()
        self.reserves: dict[int, Any] = {}
        self.settles: dict[int, Any] = {}
        self.lost: list[str] = []

    async def say(self, reserves: Sequence[Any] = (), settles: Sequence[Any] = (), **fields: Any) -> None:
        calls = pb.SessionRequest
        await self.call.write(
            pb.SessionRequest(
                reserves=[calls.ReserveCall(seq=seq, request=request) for seq, request in reserves],
                settles=[calls.SettleCall(seq=seq, request=request) for seq, request in settles],
                **fields,
            )
        )

    async def hear(self) -> Any:
        answer = await self.call.read()
        self.reserves |= {result.seq: result for result in answer.reserves}
        self.settles |= {result.seq: result for result in answer.settles}
        self.lost += answer.renewals.lost
        return answer


@pytest.fixture
async def talk(quota: Any) -> AsyncIterator[Talk]:
    talk = Talk(quota)
    await talk.say(hello=pb.SessionRequest.SessionHello(router=ROUTER))
    assert (await talk.hear()).welcome.lease.seconds == 30
    yield talk
    talk.call.cancel()


async def test_a_session_carries_many_calls(talk: Talk) -> None:
    own = {"router": None}
    await talk.say(reserves=[(seq, reserve(name, **own)) for seq, name in enumerate("abc")])
    while len(talk.reserves) < 3:
        await talk.hear()
    outcomes = [talk.reserves[seq].WhichOneof("result") for seq in range(3)]
    assert outcomes == ["reservation", "reservation", "error"]
    error = from_pb_error(talk.reserves[2].error)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "CONCURRENT_REQUESTS")

    renewals = [pb.RenewRequest.Lease(request_id=name * 32, tenant_id="acme") for name in "abf"]
    await talk.say(settles=[(7, settle("a")), (8, settle("f"))], renewals=renewals)
    while len(talk.settles) < 2 or len(talk.lost) < 2:
        await talk.hear()
    assert (talk.settles[7].settled.applied, talk.settles[8].settled.applied) == (True, False)
    assert sorted(talk.lost) == ["a" * 32, "f" * 32]


async def test_what_a_router_admitted_by_itself_is_charged_without_room_and_once(
    talk: Talk, looked_up: list[str]
) -> None:
    await talk.say(reserves=[(seq, reserve(name)) for seq, name in enumerate("ab")])
    while len(talk.reserves) < 2:
        await talk.hear()
    admitted_at = Timestamp(seconds=1_700_000_000)
    for seq, (name, incarnation) in enumerate([("c", 7), ("d", 6), ("d", 6)], start=2):
        router = common_pb2.Peer(id="router-1", incarnation=incarnation)
        await talk.say(reserves=[(seq, reserve(name, router=router, admitted_at=admitted_at))])
    other = common_pb2.Peer(id="router-2", incarnation=1)
    await talk.say(reserves=[(5, reserve("e", router=other, admitted_at=admitted_at))])
    while len(talk.reserves) < 6:
        await talk.hear()
    assert [talk.reserves[seq].WhichOneof("result") for seq in range(6)] == ["reservation"] * 5 + ["error"]
    assert from_pb_error(talk.reserves[5].error).code is Code.INVALID_ARGUMENT
    await talk.say(settles=[(1, settle("d"))])
    while not talk.settles:
        await talk.hear()
    assert talk.settles[1].settled.applied
    assert looked_up == ["d" * 32] * 2, "nobody else may know how it ended"


async def test_reserves_of_a_message_are_taken_before_its_settles(talk: Talk) -> None:
    await talk.say(reserves=[(1, reserve("a"))], settles=[(2, settle("a"))])
    while not (talk.reserves and talk.settles):
        await talk.hear()
    assert talk.settles[2].settled.applied


async def test_an_outage_is_an_error_of_the_call_and_not_of_the_session(talk: Talk, counters: Counters) -> None:
    counters.away = True
    await talk.say(reserves=[(1, reserve("a"))])
    error = from_pb_error((await talk.hear()).reserves[0].error)
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", 1.0)
    counters.away = False
    await talk.say(reserves=[(2, reserve("a")), (3, reserve("x"))])
    while len(talk.reserves) < 3:
        await talk.hear()
    assert talk.reserves[2].HasField("reservation")
    assert talk.reserves[3].error.reason == "INVALID_REQUEST"


async def test_too_many_renewals_in_a_message_end_the_session(talk: Talk) -> None:
    await talk.say(renewals=[pb.RenewRequest.Lease(request_id="a" * 32, tenant_id="acme")] * 10_001)
    error = await error_of(talk.call.read())
    assert (error.code, error.field_violations[0].field) == (Code.INVALID_ARGUMENT, "leases")


async def test_a_session_with_enough_calls_under_way_is_not_read_from(
    quota: Any, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.quota.servicer.MAX_CALLS", 8)
    talk = Talk(quota)
    counters.may_settle.clear()
    hello = pb.SessionRequest.SessionHello(router=ROUTER)
    await talk.say(settles=[(seq, settle("a")) for seq in range(10)], hello=hello)
    await counters.settling.wait()
    await talk.say(reserves=[(10, reserve("b"))])
    limits = (await quota.Peek(pb.PeekRequest(tenant_id="acme"))).limits  # on the same connection, so after the reserve
    assert (counters.waiting, {state.used for state in limits}) == (8, {0})
    counters.may_settle.set()
    while not (talk.reserves and len(talk.settles) == 10):
        await talk.hear()
    talk.call.cancel()


async def test_a_router_that_asks_for_it_is_told_its_part(quota: Any, talk: Talk) -> None:
    async def half(router: Talk, name: str) -> None:
        """Joins and acknowledges until it has a half."""
        hello = pb.SessionRequest.SessionHello(router=common_pb2.Peer(id=name, incarnation=1))
        await router.say(hello=hello, local_share_held=pb.LocalShareHeld())
        parts = 0
        while parts != 2:
            answer = await router.hear()
            if answer.HasField("local_share"):
                parts = answer.local_share.parts
                await router.say(local_share_held=pb.LocalShareHeld(number=answer.local_share.number, parts=parts))

    routers = Talk(quota), Talk(quota)
    await asyncio.gather(half(routers[0], "router-2"), half(routers[1], "router-3"))
    for router in routers:
        router.call.cancel()


async def test_a_session_begins_with_a_hello(quota: Any) -> None:
    talk = Talk(quota)
    await talk.say(reserves=[(1, reserve("a"))])
    error = await error_of(talk.call.read())
    assert (error.code, error.field_violations[0].field) == (Code.INVALID_ARGUMENT, "hello")


async def test_a_settlement_is_made_even_if_its_session_is_gone(talk: Talk, quota: Any, counters: Counters) -> None:
    counters.may_settle.clear()
    await talk.say(reserves=[(1, reserve("a"))], settles=[(2, settle("a"))])
    await counters.settling.wait()
    talk.call.cancel()
    await quota.Peek(pb.PeekRequest(tenant_id="acme"))  # on the same connection, so after the cancel
    counters.may_settle.set()
    limits = (await quota.Peek(pb.PeekRequest(tenant_id="acme"))).limits
    assert [state.used for state in limits] == [1, 15, 0]


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def watch(policy: Any, kind: Any, known_version: int = 0) -> Any:
    return policy.WatchPolicies(
        pb.WatchPoliciesRequest(watcher=ROUTER, kind=kind, known_version=known_version), timeout=60
    )


@pytest.mark.parametrize(
    ("kind", "keys", "system_prompt", "isolation_key"),
    [
        (pb.WATCHER_KIND_ROUTER, 1, True, True),
        (pb.WATCHER_KIND_SCHEDULER, 0, False, False),
        (pb.WATCHER_KIND_WORKER, 0, False, True),
        (pb.WATCHER_KIND_METERING, 0, False, False),
    ],
)
async def test_a_watcher_gets_the_secrets_of_its_kind(
    policy: Any, feed: PolicyFeed, kind: Any, keys: int, system_prompt: bool, isolation_key: bool
) -> None:
    call = watch(policy, kind)
    page = await call.read()
    assert (page.version, page.snapshot_begin, page.snapshot_end) == (feed.edition.version, True, True)
    changed = tenant("acme", display_name="Acme")
    feed.publish(policies(changed, keys=[KeyPolicy("k2", "acme", b"j" * 32)]))
    change = await call.read()
    assert (change.snapshot_begin, list(change.removed_tenants)) == (False, ["hooli"])
    assert list(change.removed_keys) == ["k1"] * keys
    for message in (page, change):
        assert len(message.keys) == keys
        assert bool(message.tenants[0].system_prompt) == system_prompt
        assert bool(message.tenants[0].isolation_key) == isolation_key
    call.cancel()


@pytest.mark.parametrize(
    ("certificate", "allowed"),
    [("", True), ("worker", True), ("router", False), ("scheduler", False), ("admin", False)],
)
async def test_a_kind_has_to_be_the_certificates(
    policy: Any, monkeypatch: pytest.MonkeyPatch, certificate: str, allowed: bool
) -> None:
    monkeypatch.setattr("forebay.quota.policy_servicer.caller", ContextVar("caller", default=certificate))
    call = watch(policy, pb.WATCHER_KIND_WORKER)
    if allowed:
        assert (await call.read()).snapshot_begin
        call.cancel()
    else:
        error = await error_of(call.read())
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "KIND_MISMATCH")


async def test_the_number_of_watchers_is_bounded(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.quota.policies.MAX_WATCHES", 1)
    first = watch(policy, pb.WATCHER_KIND_ROUTER)
    await first.read()
    error = await error_of(watch(policy, pb.WATCHER_KIND_ROUTER).read())
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
    assert error.retry_after
    first.cancel()


async def test_what_a_watcher_serves_is_known_while_it_watches(clock: FakeClock, feed: PolicyFeed) -> None:
    served, server = Served(), RpcServer("127.0.0.1:0")
    server.add(quota_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyServicer(feed, served), "policy")
    await server.start()
    own = Overrides(models=("small", "gpt-4"), pool="gold")
    async with connect(server.address, caller="test") as channel:
        policy = quota_pb2_grpc.PolicyServiceStub(channel)
        serves = pb.WatchPoliciesRequest.Served
        kinds = (
            (pb.WATCHER_KIND_ROUTER, serves(model="small")),
            (pb.WATCHER_KIND_WORKER, serves(model="small", pool="gold")),
        )
        calls = []
        for kind, what in kinds:
            calls.append(
                policy.WatchPolicies(pb.WatchPoliciesRequest(watcher=ROUTER, kind=kind, serves=[what]), timeout=60)
            )
            await calls[-1].read()
        assert [it.description for it in served.warnings("tenant", own)] == [
            "no connected router serves the model 'gpt-4'; there is small"
        ]
        too_many = pb.WatchPoliciesRequest(watcher=ROUTER, kind=pb.WATCHER_KIND_ROUTER, serves=[serves()] * 1_001)
        assert (await error_of(policy.WatchPolicies(too_many, timeout=60).read())).code is Code.INVALID_ARGUMENT
        for call in calls:
            call.cancel()
    await server.drain(0)
    assert ["could not be checked" in it.description for it in served.warnings("tenant", own)] == [True, True]


async def test_a_kind_has_to_be_named(policy: Any) -> None:
    for kind in (pb.WATCHER_KIND_UNSPECIFIED, 17):
        assert (await error_of(watch(policy, kind).read())).code is Code.INVALID_ARGUMENT


async def test_a_snapshot_comes_in_pages_and_so_does_a_large_change(
    policy: Any, feed: PolicyFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.quota.policy_servicer.PAGE_BYTES", 4_096)
    cache = PolicyCache()
    call = watch(policy, pb.WATCHER_KIND_ROUTER)
    cache.apply(await call.read())
    sizes = (3_000, 0, 2_000, 2_000, 0, 0, 1_000)
    many = [replace(tenant(f"t{number}"), system_prompt="x" * size) for number, size in enumerate(sizes)]
    feed.publish(policies(*many, keys=[KeyPolicy(f"k{number:02}", "t3", b"h" * 32) for number in range(99)]))
    pages = [await call.read()]
    while not pages[-1].snapshot_end:
        pages.append(await call.read())
    assert [page.snapshot_begin for page in pages] == [True] + [False] * (len(pages) - 1)
    assert len(pages) > 3
    assert max(page.ByteSize() for page in pages) < 4_200
    assert [cache.apply(page) for page in pages][-2:] == [False, True]
    assert (cache.tenants, cache.keys) == (feed.policies.tenants, feed.policies.keys)
    assert cache.version == feed.edition.version
    call.cancel()


async def test_a_watcher_that_is_up_to_date_gets_no_snapshot(policy: Any, feed: PolicyFeed) -> None:
    call = watch(policy, pb.WATCHER_KIND_ROUTER, feed.edition.version)
    assert await call.read() == pb.WatchPoliciesResponse(version=feed.edition.version)
    call.cancel()


async def test_a_watcher_that_falls_behind_is_ended(policy: Any, feed: PolicyFeed) -> None:
    call = watch(policy, pb.WATCHER_KIND_ROUTER)
    await call.read()
    for number in range(100):  # in one tick: the watcher has no chance to keep up
        feed.publish(policies(tenant("acme", display_name=str(number))))
    error = await error_of(read_all(call))
    assert (error.code, error.reason) == (Code.ABORTED, "WATCH_BEHIND")


async def test_the_meshs_own_watcher_follows(channel: grpc.aio.Channel, feed: PolicyFeed, clock: FakeClock) -> None:
    changed = asyncio.Event()
    watcher = PolicyWatcher(channel, ROUTER, pb.WATCHER_KIND_ROUTER, clock, changed.set)
    running = asyncio.create_task(watcher.run())
    await watcher.wait_ready()
    assert watcher.cache.tenants == feed.policies.tenants
    changed.clear()
    feed.publish(policies(tenant("globex")))
    await changed.wait()
    assert (set(watcher.cache.tenants), watcher.cache.keys) == ({"globex"}, {})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_tenants_are_listed_without_isolation_keys(tenants: Any) -> None:
    first = await tenants.ListTenants(pb.ListTenantsRequest(page_size=1))
    second = await tenants.ListTenants(pb.ListTenantsRequest(page_size=1, page_token=first.next_page_token))
    listed = [*first.tenants, *second.tenants]
    assert [message.tenant_id for message in listed] == ["acme", "hooli"]
    assert second.next_page_token == ""
    acme = (await tenants.GetTenant(pb.GetTenantRequest(tenant_id="acme"))).tenant
    assert acme == listed[0]
    assert (acme.isolation_key, acme.limits.tokens_per_minute) == (b"", 100)
    error = await error_of(tenants.GetTenant(pb.GetTenantRequest(tenant_id="nobody")))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "TENANT_NOT_FOUND")


async def test_plans_are_listed_with_the_limits_of_their_class(tenants: Any) -> None:
    plans = (await tenants.ListPlans(pb.ListPlansRequest())).plans
    assert [plan.name for plan in plans] == ["basic", "more"]
    assert (plans[0].limits.requests_per_second, plans[0].limits.concurrent_requests) == (20, 2)
    assert plans[0].nano_usd_per_million_tokens == 2_000_000_000
