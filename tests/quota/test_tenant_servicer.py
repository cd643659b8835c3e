"""TenantService over the wire, with certificates of each role, on a store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from forebay.api.quota.v1 import quota_pb2 as pb
from forebay.api.quota.v1 import quota_pb2_grpc
from forebay.cli.certificates import certify
from forebay.config import TlsConfig
from forebay.errors import Code, MeshError
from forebay.policy.keys import hash_key, parse_key_id
from forebay.quota.domain.audit import unbroken
from forebay.quota.policies import PolicyFeed
from forebay.quota.policy_files import SHIPPED_PLANS
from forebay.quota.policy_store import ANSWERS_KEPT_S, InMemoryPolicyStore
from forebay.quota.served import Served
from forebay.quota.stored_policies import StoredPolicies
from forebay.quota.tenant_servicer import TenantServicer
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.status import from_rpc_error
from forebay.testing.clock import FakeClock

PEPPER = b"0123456789abcdef"
_ids = count(1)


def fresh() -> str:
    return f"{next(_ids):032x}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TlsConfig]:
    folder: Path = tmp_path_factory.mktemp("certificates")
    return lambda service: TlsConfig.model_validate(certify(folder, service, f"{service}-alice"))


@pytest.fixture
def store() -> InMemoryPolicyStore:
    return InMemoryPolicyStore()


@pytest.fixture
def stored(store: InMemoryPolicyStore, clock: FakeClock) -> StoredPolicies:
    return StoredPolicies(store, PEPPER, clock)


@pytest.fixture
async def feed(stored: StoredPolicies) -> PolicyFeed:
    return await stored.start(SHIPPED_PLANS, None, None)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def stub_as(
    certificates: Callable[[str], TlsConfig], feed: PolicyFeed, stored: StoredPolicies, clock: FakeClock, served: Served
) -> AsyncIterator[Callable[[str], Any]]:
    server = RpcServer("127.0.0.1:0", tls=certificates("quota"))
    servicer = TenantServicer(feed, clock, stored, served)
    server.add(quota_pb2_grpc.add_TenantServiceServicer_to_server, servicer, "forebay.api.quota.v1.TenantService")
    await server.start()
    async with AsyncExitStack() as stack:
        channels: list[grpc.aio.Channel] = []

        def stub(role: str) -> Any:
            channels.append(connect(server.address, caller="test", service="quota", tls=certificates(role)))
            stack.push_async_callback(channels[-1].close)
            return quota_pb2_grpc.TenantServiceStub(channels[-1])

        yield stub
    await server.drain(0)


@pytest.fixture
def admin(stub_as: Callable[[str], Any]) -> Any:
    return stub_as("admin")


async def error_of(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def create(admin: Any, tenant_id: str = "acme", plan: str = "basic", **fields: Any) -> pb.Tenant:
    paths = fields.pop("paths", list(fields))
    tenant = pb.TenantPolicy(tenant_id=tenant_id, plan=plan, **fields)
    request = pb.CreateTenantRequest(request_id=fresh(), tenant=tenant, overrides=FieldMask(paths=paths))
    return (await admin.CreateTenant(request)).tenant


async def update(admin: Any, paths: list[str], etag: str = "", **fields: Any) -> pb.Tenant:
    request = pb.UpdateTenantRequest(
        request_id=fresh(),
        tenant=pb.TenantPolicy(tenant_id="acme", **fields),
        update_mask=FieldMask(paths=paths),
        etag=etag,
    )
    return (await admin.UpdateTenant(request)).tenant


async def log_of(admin: Any, **fields: Any) -> list[pb.AuditEvent]:
    return list((await admin.ListAuditEvents(pb.ListAuditEventsRequest(**fields))).events)


async def test_a_tenant_is_made_from_a_plan_and_overrides_parts_of_it(admin: Any, feed: PolicyFeed) -> None:
    limits = pb.Limits(tokens_per_minute=7)
    made = await create(admin, limits=limits, display_name="Acme", paths=["limits.tokens_per_minute", "display_name"])
    assert (made.policy.limits.tokens_per_minute, made.policy.limits.requests_per_minute) == (7, 60)
    assert list(made.overrides.paths) == ["display_name", "limits.tokens_per_minute"]
    assert made.policy.isolation_key == b""
    got = await admin.GetTenant(pb.GetTenantRequest(tenant_id="acme"))
    assert (got.details, got.tenant) == (made, made.policy)
    assert feed.policies.tenants["acme"].limits.tokens_per_minute == 7
    assert feed.policies.tenants["acme"].isolation_key


async def test_a_field_named_and_unset_follows_the_plan_again(admin: Any, feed: PolicyFeed) -> None:
    await create(admin, limits=pb.Limits(tokens_per_minute=7, requests_per_minute=3), weight_milli=5)
    changed = await update(admin, ["limits.tokens_per_minute", "weight_milli"])
    assert list(changed.overrides.paths) == ["limits.requests_per_minute"]
    assert (changed.policy.limits.tokens_per_minute, changed.policy.weight_milli) == (5_000, 500)
    changed = await update(admin, ["plan", "limits"], plan="standard")
    assert (changed.policy.plan, changed.policy.limits.tokens_per_minute) == ("standard", 25_000)
    assert not changed.overrides.paths


async def test_an_etag_of_before_is_refused(admin: Any) -> None:
    made = await create(admin)
    changed = await update(admin, ["display_name"], made.etag, display_name="A")
    assert changed.etag != made.etag
    error = await error_of(update(admin, ["display_name"], made.etag, display_name="B"))
    assert (error.code, error.reason) == (Code.ABORTED, "ETAG_MISMATCH")
    error = await error_of(
        admin.DeleteTenant(pb.DeleteTenantRequest(request_id=fresh(), tenant_id="acme", etag=made.etag))
    )
    assert error.code is Code.ABORTED


async def test_a_repeat_is_answered_as_before_and_changes_nothing(
    admin: Any, clock: FakeClock, feed: PolicyFeed
) -> None:
    request = pb.CreateTenantRequest(request_id=fresh(), tenant=pb.TenantPolicy(tenant_id="acme", plan="basic"))
    first = await admin.CreateTenant(request)
    version, events = feed.edition.version, await log_of(admin)
    assert await admin.CreateTenant(request) == first
    assert (feed.edition.version, await log_of(admin)) == (version, events)
    request.tenant.plan = "standard"
    error = await error_of(admin.CreateTenant(request))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    clock.advance(ANSWERS_KEPT_S)
    error = await error_of(admin.CreateTenant(request))
    assert error.reason == "TENANT_ID_TAKEN"


async def test_replicas_answer_as_one(
    store: InMemoryPolicyStore, stored: StoredPolicies, feed: PolicyFeed, clock: FakeClock, monkeypatch: Any
) -> None:
    other = StoredPolicies(store, PEPPER, clock)
    await other.start(SHIPPED_PLANS, None, None)
    here, there = (TenantServicer(feed, clock, policies) for policies in (stored, other))
    context = SimpleNamespace(auth_context=dict)
    request = pb.CreateTenantRequest(request_id=fresh(), tenant=pb.TenantPolicy(tenant_id="acme", plan="basic"))
    answer = store.answer

    async def before_the_other(*arguments: Any) -> Any:
        """The same request comes to the other replica between this one's look for an answer and its change."""
        monkeypatch.setattr(store, "answer", answer)
        missing = await answer(*arguments)
        await there.CreateTenant(request, context)
        return missing

    monkeypatch.setattr(store, "answer", before_the_other)
    made = (await here.CreateTenant(request, context)).tenant
    assert made.policy.tenant_id == "acme"
    # What one replica has just done, another knows when it is asked for the next step.
    update = pb.UpdateTenantRequest(request_id=fresh(), tenant=made.policy, etag=made.etag)
    update.update_mask.paths.append("weight_milli")
    made = (await here.UpdateTenant(update, context)).tenant
    update.CopyFrom(pb.UpdateTenantRequest(request_id=fresh(), tenant=made.policy, etag=made.etag))
    update.update_mask.paths.append("display_name")
    assert (await there.UpdateTenant(update, context)).tenant.etag != made.etag
    issue = pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme"))
    assert (await there.IssueKey(issue, context)).secret
    assert not await store.events(0, 9, "", True)


async def test_a_removed_tenant_takes_its_keys_along_and_its_id(admin: Any, feed: PolicyFeed) -> None:
    await create(admin)
    await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme")))
    await admin.DeleteTenant(pb.DeleteTenantRequest(request_id=fresh(), tenant_id="acme"))
    assert (feed.policies.tenants, feed.policies.keys) == ({}, {})
    assert (await error_of(create(admin))).reason == "TENANT_ID_TAKEN"
    assert (await error_of(admin.GetTenant(pb.GetTenantRequest(tenant_id="acme")))).code is Code.NOT_FOUND


async def test_a_plan_changes_its_tenants_where_they_override_nothing(admin: Any, feed: PolicyFeed) -> None:
    await create(admin)
    await create(admin, "globex", limits=pb.Limits(tokens_per_minute=7))
    plan = pb.Plan(name="basic", limits=pb.Limits(tokens_per_minute=9))
    mask = FieldMask(paths=["limits.tokens_per_minute"])
    answer = await admin.UpdatePlan(pb.UpdatePlanRequest(request_id=fresh(), plan=plan, update_mask=mask))
    assert (answer.tenants, answer.plan.limits.tokens_per_minute, answer.plan.weight_milli) == (2, 9, 500)
    of = {name: tenant.limits.tokens_per_minute for name, tenant in feed.policies.tenants.items()}
    assert of == {"acme": 9, "globex": 7}
    error = await error_of(admin.UpdatePlan(pb.UpdatePlanRequest(request_id=fresh(), plan=pb.Plan(name="new"))))
    assert {violation.field for violation in error.field_violations} == {
        "plan.service_class", "plan.weight_milli", "plan.limits.concurrent_requests",
    }  # fmt: skip
    await create(admin, "hooli", priced_by_plan=True)
    free = pb.UpdatePlanRequest(
        request_id=fresh(), plan=pb.Plan(name="basic"), update_mask=FieldMask(paths=["nano_usd_per_million_tokens"])
    )
    assert (await error_of(admin.UpdatePlan(free))).reason == "PLAN_WITHOUT_PRICE"


async def test_a_key_is_shown_once_and_stored_as_a_hash(admin: Any, feed: PolicyFeed) -> None:
    await create(admin)
    request = pb.IssueKeyRequest(
        request_id=fresh(),
        key=pb.KeyPolicy(
            tenant_id="acme", display_name="laptop", models=["m"], limits=pb.Limits(requests_per_minute=1)
        ),
    )
    first = await admin.IssueKey(request)
    key_id = parse_key_id(first.secret)
    policy = feed.policies.keys[str(key_id)]
    assert policy.hash == hash_key(PEPPER, first.secret)
    assert (policy.models, policy.limits.requests_per_minute, policy.display_name) == (("m",), 1, "laptop")
    assert (first.key.policy.key_id, first.key.policy.hash) == (key_id, b"")
    again = await admin.IssueKey(request)
    assert (again.key, again.secret) == (first.key, "")
    listed = await admin.ListKeys(pb.ListKeysRequest(tenant_id="acme"))
    assert list(listed.keys) == [first.key]
    log = str(await log_of(admin))
    assert first.secret not in log
    assert policy.hash.hex() not in log


async def test_a_key_that_is_given_for_its_id_is_not_written_down(admin: Any, store: InMemoryPolicyStore) -> None:
    await create(admin)
    secret = (await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme")))).secret
    for call in (
        admin.RevokeKey(pb.RevokeKeyRequest(request_id=fresh(), key_id=secret)),
        admin.RotateKey(pb.RotateKeyRequest(request_id=fresh(), key_id=secret)),
        admin.SuspendTenant(pb.SuspendTenantRequest(request_id=fresh(), tenant_id=secret)),
        create(admin, plan=secret),
    ):
        assert secret not in str(await error_of(call))
    assert len(await store.events(0, 9, "", True)) == 4
    assert secret not in str(await store.events(0, 9, "", False))


@pytest.mark.parametrize("seconds", [1, 2**62, -(2**62)])
async def test_a_key_must_expire_at_a_time_to_come(admin: Any, seconds: int) -> None:
    await create(admin)
    request = pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme"))
    request.key.expires_at.seconds = seconds
    error = await error_of(admin.IssueKey(request))
    assert (error.code, [violation.field for violation in error.field_violations]) == (
        Code.INVALID_ARGUMENT,
        ["key.expires_at"],
    )


async def test_a_rotated_key_goes_on_for_the_overlap(admin: Any, feed: PolicyFeed, clock: FakeClock) -> None:
    await create(admin)
    old = await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme", models=["m"])))
    old_id = old.key.policy.key_id
    request = pb.RotateKeyRequest(request_id=fresh(), key_id=old_id)
    request.overlap.seconds = 60
    answer = await admin.RotateKey(request)
    assert answer.replaced.replaced_by == answer.key.policy.key_id == parse_key_id(answer.secret)
    assert feed.policies.keys[old_id].expires_at == clock.now() + 60
    new = feed.policies.keys[answer.key.policy.key_id]
    assert (new.models, new.expires_at, new.hash) == (("m",), None, hash_key(PEPPER, answer.secret))
    assert (await admin.RotateKey(request)).secret == ""
    error = await error_of(admin.RotateKey(pb.RotateKeyRequest(request_id=fresh(), key_id=old_id)))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "KEY_IS_OVER")


async def test_keys_that_are_over_take_no_room(admin: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.quota.domain.edits.MAX_KEYS", 2)
    await create(admin)

    def issue() -> Any:
        return admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme")))

    def rotate(key_id: str) -> Any:
        return admin.RotateKey(pb.RotateKeyRequest(request_id=fresh(), key_id=key_id, overlap={"seconds": 60}))

    first = (await issue()).key.policy.key_id
    second = (await rotate(first)).key.policy.key_id
    for refused in (issue(), rotate(second)):
        assert (await error_of(refused)).reason == "TOO_MANY_KEYS"
    clock.advance(60)
    third = (await rotate(second)).key.policy.key_id
    await admin.RevokeKey(pb.RevokeKeyRequest(request_id=fresh(), key_id=second))
    assert (await issue()).secret
    assert (await error_of(rotate(third))).reason == "TOO_MANY_KEYS"
    assert len((await admin.ListKeys(pb.ListKeysRequest(tenant_id="acme"))).keys) == 4


async def test_watchers_are_told_of_each_change_at_once(admin: Any, feed: PolicyFeed) -> None:
    await create(admin)
    secret = (await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme")))).secret
    key_id = str(parse_key_id(secret))
    with feed.watch() as watch:
        await admin.SuspendTenant(pb.SuspendTenantRequest(request_id=fresh(), tenant_id="acme", reason="unpaid"))
        await admin.ResumeTenant(pb.ResumeTenantRequest(request_id=fresh(), tenant_id="acme"))
        await admin.RevokeKey(pb.RevokeKeyRequest(request_id=fresh(), key_id=key_id))
        assert (await watch.next()).change.tenants[0].suspended
        assert not (await watch.next()).change.tenants[0].suspended
        assert (await watch.next()).change.keys[0].revoked
    assert "reason: unpaid" in (await log_of(admin))[2].changes


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_roles_may_do_what_is_theirs_and_refusals_are_logged(
    stub_as: Callable[[str], Any], admin: Any, role: str
) -> None:
    await create(admin)
    stub = stub_as(role)
    assert (await stub.ListTenants(pb.ListTenantsRequest())).tenants
    assert await log_of(stub)
    assert (await error_of(create(stub, "globex"))).reason == "ROLE_NOT_ALLOWED"
    suspend = stub.SuspendTenant(pb.SuspendTenantRequest(request_id=fresh(), tenant_id="acme"))
    if role == "operator":
        assert (await suspend).tenant.policy.suspended
    else:
        assert (await error_of(suspend)).code is Code.PERMISSION_DENIED
    refused = await log_of(admin, refused_only=True)
    assert [event.action for event in refused][-1] == "CreateTenant"
    assert {(event.actor, event.refusal.reason) for event in refused} == {(f"{role}/{role}-alice", "ROLE_NOT_ALLOWED")}


async def test_every_change_and_every_refusal_is_in_the_log(admin: Any, store: InMemoryPolicyStore) -> None:
    await create(admin)
    await update(
        admin, ["limits.tokens_per_minute", "system_prompt"], limits=pb.Limits(tokens_per_minute=7), system_prompt="x"
    )
    await error_of(update(admin, ["no_such_field"]))
    newest, changed, *_ = await log_of(admin, tenant_id="acme")
    assert (newest.refusal.reason, newest.subject, newest.number) == (
        "INVALID_REQUEST",
        "tenant:acme",
        changed.number + 1,
    )
    assert (changed.actor, changed.action) == ("admin/admin-alice", "UpdateTenant")
    assert list(changed.changes) == ["limits.tokens_per_minute: unset -> 7", "system_prompt: changed"]
    assert changed.request_id
    assert unbroken([*reversed(await store.events(0, 100, "", False))])
    first = await admin.ListAuditEvents(pb.ListAuditEventsRequest(page_size=1))
    second = await admin.ListAuditEvents(pb.ListAuditEventsRequest(page_size=1, page_token=first.next_page_token))
    assert [first.events[0].number, second.events[0].number] == [newest.number, changed.number]


async def test_the_log_says_what_changed_of_what_is_inside(admin: Any) -> None:
    canary = pb.Canary(started_at={"seconds": 1_700_000_000}, steps=[{"percent": 10, "holds_for": {"seconds": 60}}])
    await create(admin, canary=canary, model_limits={"big": pb.Limits(tokens_per_day=7)}, models=["a", "big"])
    (made,) = await log_of(admin, tenant_id="acme")
    assert list(made.changes) == [
        "plan: unset -> basic",
        "canary.started_at: unset -> 2023-11-14 22:13:20+00:00",
        "canary.steps.1.percent: unset -> 10",
        "canary.steps.1.seconds: unset -> 60",
        "model_limits.big.tokens_per_day: unset -> 7",
        "models: unset -> a, big",
    ]
    many = {f"m{number}": pb.Limits(requests_per_minute=1, tokens_per_minute=1) for number in range(64)}
    await update(admin, ["model_limits", "suspended"], model_limits=many, suspended=True)
    changes = (await log_of(admin, tenant_id="acme"))[0].changes
    assert (len(changes), changes[-1]) == (63, "and 68 more")


async def test_a_page_ends_where_a_message_would(admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        await create(admin, name, system_prompt="x" * 1_000)
    monkeypatch.setattr("forebay.quota.tenant_servicer.MAX_PAGE_BYTES", 2_500)
    first = await admin.ListTenants(pb.ListTenantsRequest(page_size=1_000))
    second = await admin.ListTenants(pb.ListTenantsRequest(page_size=1_000, page_token=first.next_page_token))
    pages = [[tenant.tenant_id for tenant in page.tenants] for page in (first, second)]
    assert (pages, second.next_page_token) == ([["a", "b"], ["c"]], "")
    monkeypatch.setattr("forebay.quota.tenant_servicer.MAX_PAGE_BYTES", 1)
    numbers, token = [], ""
    while token or not numbers:
        page = await admin.ListAuditEvents(pb.ListAuditEventsRequest(page_token=token, page_size=2))
        numbers += [event.number for event in page.events]
        token = page.next_page_token
    assert numbers == list(range(numbers[0], 0, -1))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"weight_milli": 2_000_000}, "tenant.weight_milli"),
        ({"limits": pb.Limits(tokens_per_minute=0)}, "tenant.limits.tokens_per_minute"),
        ({"model_limits": {"m": pb.Limits(requests_per_minute=-1)}}, "tenant.model_limits[m].requests_per_minute"),
        ({"service_class": 9}, "tenant.service_class"),
        ({"loss_policy": 9}, "tenant.loss_policy"),
        ({"time_zone": "Mars/Olympus"}, "tenant.time_zone"),
        ({"thresholds": pb.Thresholds(warn_percent=90, throttle_percent=50)}, "tenant.thresholds"),
        ({"canary": pb.Canary()}, "tenant.canary.steps"),
        ({"models": [""]}, "tenant.models"),
        ({"system_prompt": "x" * 9_000}, "tenant.system_prompt"),
        ({"display_name": "x" * 201}, "tenant.display_name"),
        ({"pool": "A pool"}, "tenant.pool"),
    ],
)
async def test_every_field_is_bounded(admin: Any, fields: dict[str, Any], path: str) -> None:
    error = await error_of(create(admin, **fields))
    assert (error.code, path) == (Code.INVALID_ARGUMENT, error.field_violations[0].field)


async def test_what_is_not_there_is_not_found(admin: Any) -> None:
    calls = [
        create(admin, plan="none"),
        update(admin, ["display_name"]),
        admin.SuspendTenant(pb.SuspendTenantRequest(request_id=fresh(), tenant_id="acme")),
        admin.ListKeys(pb.ListKeysRequest(tenant_id="acme")),
        admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=pb.KeyPolicy(tenant_id="acme"))),
        admin.RevokeKey(pb.RevokeKeyRequest(request_id=fresh(), key_id="a" * 12)),
    ]
    assert {(await error_of(call)).code for call in calls} == {Code.NOT_FOUND}
    error = await error_of(admin.RevokeKey(pb.RevokeKeyRequest(key_id="a" * 12)))
    assert error.field_violations[0].field == "request_id"


COMMON = """\
tenants:
  acme-corp:
    tier: enterprise
    models_allowed: [gpt-oss, smollm2]
    rate_limits: {requests_per_minute: 1000, tokens_per_minute: 100000, concurrent_requests: 20}
    budget: {daily_limit_usd: 500.0, monthly_limit_usd: 10000, alert_threshold_percent: 80}
    priority: high
  small:
    tier: free
    priority: low
"""


async def test_a_file_in_the_common_shape_gives_the_tenants_it_describes(admin: Any, feed: PolicyFeed) -> None:
    request = pb.ImportTenantsRequest(request_id=fresh(), file=COMMON, dry_run=True)
    planned = await admin.ImportTenants(request)
    assert feed.policies.tenants == {}
    done = await admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=COMMON))
    assert list(done.created) == list(planned.created) == ["acme-corp", "small"]
    acme, small = feed.policies.tenants["acme-corp"], feed.policies.tenants["small"]
    limits = acme.limits
    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests) == (1_000, 100_000, 20)
    assert (limits.daily_budget_nano_usd, limits.monthly_budget_nano_usd) == (500 * 10**9, 10_000 * 10**9)
    assert (acme.plan, acme.models, acme.alert_percent) == ("enterprise", ("gpt-oss", "smollm2"), 80)
    assert (acme.service_class.name, small.service_class.name, small.models) == ("GOLD", "BRONZE", None)
    second = await admin.ImportTenants(
        pb.ImportTenantsRequest(request_id=fresh(), file=COMMON.replace("high", "medium"))
    )
    assert (list(second.updated), list(second.unchanged)) == (["acme-corp"], ["small"])
    assert feed.policies.tenants["acme-corp"].service_class.name == "SILVER"


async def test_an_empty_list_of_models_allows_none_and_no_list_allows_all(admin: Any, feed: PolicyFeed) -> None:
    """By every way in: an update and a creation by either field, a file of either shape, and a key."""

    def models() -> dict[str, Any]:
        return {name: tenant.models for name, tenant in feed.policies.tenants.items()}

    made = await create(admin, model_scope=pb.ModelScope())
    assert (models(), made.policy.HasField("model_scope"), made.overrides.paths) == (
        {"acme": ()},
        True,
        ["model_scope"],
    )
    back = await update(admin, ["model_scope"])
    assert (models(), back.policy.HasField("model_scope"), back.overrides.paths) == ({"acme": None}, False, [])
    for scope, expected in ((["a", "b"], ("a", "b")), ([], ()), (["*"], None)):
        await update(admin, ["model_scope"], model_scope=pb.ModelScope(models=scope))
        assert models() == {"acme": expected}
    await update(admin, ["models"], models=["a"])
    assert models() == {"acme": ("a",)}
    for call in (update(admin, ["models"]), create(admin, "globex", paths=["models"])):
        error = await error_of(call)
        assert (error.code, [it.field for it in error.field_violations]) == (Code.INVALID_ARGUMENT, ["tenant.models"])
    assert models() == {"acme": ("a",)}
    for text in ("{plan: basic, models: []}", "{tier: basic, models_allowed: []}"):
        await admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=f"tenants: {{acme: {text}}}"))
        assert models() == {"acme": ()}
        await admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file="tenants: {acme: {tier: basic}}"))
        assert models() == {"acme": ()}
        every = text.replace("[]", '["*"]')
        await admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=f"tenants: {{acme: {every}}}"))
        assert models() == {"acme": None}
    for key, expected in (
        (pb.KeyPolicy(tenant_id="acme"), None),
        (pb.KeyPolicy(tenant_id="acme", model_scope=pb.ModelScope()), ()),
        (pb.KeyPolicy(tenant_id="acme", model_scope=pb.ModelScope(models=["a"])), ("a",)),
    ):
        issued = await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=key))
        assert feed.policies.keys[issued.key.policy.key_id].models == expected
        assert issued.key.policy.HasField("model_scope") is (expected is not None)
    changes = [line for event in await log_of(admin) for line in event.changes if line.startswith("models")]
    assert "models: unset -> none" in changes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight_milli", 0), ("weight_milli", 10**6 + 1), ("alert_percent", 0), ("alert_percent", 101),
        ("thresholds", pb.Thresholds(warn_percent=0)), ("thresholds", pb.Thresholds(hard_percent=1_001)),
        ("thresholds", pb.Thresholds(warn_percent=101)), ("time_zone", "Mars/Olympus"), ("pool", "Gold!"),
        ("service_class", 9), ("loss_policy", 9), ("default_adapter", "support"), ("limits", pb.Limits(tokens_per_day=0)),
        ("limits", pb.Limits(daily_budget_nano_usd=-1)), ("models", ["a", "*"]), ("models", [""]), ("adapters", ["x" * 201]),
        ("canary", pb.Canary()), ("canary", pb.Canary(steps=[{"percent": 0, "holds_for": {"seconds": 1}}])),
        ("canary", pb.Canary(steps=[{"percent": 9, "holds_for": {"seconds": 1, "nanos": 5}}])),
        ("canary", pb.Canary(steps=[{"percent": p, "holds_for": {"seconds": 1}} for p in (9, 8)])),
        ("canary", pb.Canary(started_at={"seconds": 1}, steps=[{"percent": 9, "holds_for": {"seconds": 1}}])),
        ("model_limits", {"": pb.Limits()}), ("model_limits", {"m": pb.Limits(requests_per_second=0)}),
        ("system_prompt", "x" * 8_193), ("display_name", "x" * 201), ("weight", None),
    ],
)  # fmt: skip
async def test_a_value_out_of_bounds_is_refused_by_its_field(admin: Any, field: str, value: Any) -> None:
    before = await create(admin)
    fields = {} if value is None else {field: value}
    error = await error_of(update(admin, [field], **fields))
    assert error.code is Code.INVALID_ARGUMENT
    named = {violation.field for violation in error.field_violations}
    assert all(name == "update_mask" if value is None else name.startswith(f"tenant.{field}") for name in named), named
    assert named
    assert (await admin.GetTenant(pb.GetTenantRequest(tenant_id="acme"))).details == before


async def test_a_plan_that_costs_nothing_is_no_plan_without_a_price(admin: Any, feed: PolicyFeed) -> None:
    plan = pb.Plan(name="basic", nano_usd_per_million_tokens=0)
    mask = FieldMask(paths=["nano_usd_per_million_tokens"])
    answer = await admin.UpdatePlan(pb.UpdatePlanRequest(request_id=fresh(), plan=plan, update_mask=mask))
    assert answer.plan.HasField("nano_usd_per_million_tokens")
    assert feed.policies.plans["basic"].nano_usd_per_million_tokens == 0
    for field, value in (("weight_milli", 0), ("alert_percent", 0), ("alert_percent", 101)):
        request = pb.UpdatePlanRequest(request_id=fresh(), plan=pb.Plan(name="basic", **{field: value}))
        request.update_mask.paths.append(field)
        error = await error_of(admin.UpdatePlan(request))
        assert [violation.field for violation in error.field_violations] == [f"plan.{field}"]


async def test_what_quota_cannot_tell_to_exist_is_warned_of(admin: Any, served: Served) -> None:
    scope = pb.ModelScope(models=["gpt-4"])

    async def warnings(paths: list[str], **fields: Any) -> dict[str, str]:
        request = pb.UpdateTenantRequest(
            request_id=fresh(), tenant=pb.TenantPolicy(tenant_id="acme", **fields), update_mask=FieldMask(paths=paths)
        )
        response = await admin.UpdateTenant(request)
        return {it.field: it.description for it in response.warnings}

    await create(admin)
    assert await warnings(["model_scope", "pool"], model_scope=scope, pool="gold") == {
        "tenant.models": "could not be checked: no router is connected to this quota",
        "tenant.pool": "could not be checked: no worker is connected to this quota",
    }
    with served.by_router(["smollm2"]), served.by_worker([""]), served.by_worker(["golden"]):
        assert await warnings(["model_scope", "pool"], model_scope=scope, pool="gold") == {
            "tenant.models": "no connected router serves the model 'gpt-4'; there is smollm2",
            "tenant.pool": "no connected worker serves the pool 'gold'; did you mean golden?",
        }
        assert await warnings(["display_name"], display_name="A") == {}
        assert await warnings(["pool"], pool="golden") == {}
        limits = {"gpt-4": pb.Limits(tokens_per_day=1)}
        assert set(await warnings(["model_limits"], model_limits=limits)) == {"tenant.model_limits"}
        assert set(await warnings(["adapters"], adapters=["a"])) == {"tenant.adapters"}
        text = "tenants: {globex: {plan: basic, models: [smollm2, gpt-4], pool: gold}}"
        for dry_run in (True, False):
            request = pb.ImportTenantsRequest(request_id=fresh(), file=text, dry_run=dry_run)
            found = (await admin.ImportTenants(request)).warnings
            assert [it.field for it in found] == ["tenants.globex.models", "tenants.globex.pool"]
        key = pb.KeyPolicy(tenant_id="acme", model_scope=scope)
        issued = await admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=key))
        assert [it.field for it in issued.warnings] == ["key.models"]
        key.model_scope.models[:] = ["smollm2"]
        error = await error_of(admin.IssueKey(pb.IssueKeyRequest(request_id=fresh(), key=key)))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MODEL_NOT_ALLOWED")
    assert "no router is connected" in str(await warnings(["model_scope"], model_scope=scope))


async def test_an_import_changes_what_the_file_names_and_nothing_else(admin: Any) -> None:
    fields: dict[str, Any] = {
        "limits": pb.Limits(tokens_per_minute=7, tokens_per_day=9), "display_name": "Acme", "weight_milli": 7,
        "model_scope": pb.ModelScope(models=["m"]), "adapters": ["a"], "default_adapter": "a", "pool": "gold",
        "system_prompt": "Be brief.", "alert_percent": 5, "thresholds": pb.Thresholds(warn_percent=10),
        "priced_by_plan": True, "time_zone": "Asia/Tokyo",
    }  # fmt: skip
    before = await create(admin, **fields)
    for text in ("{plan: basic}", "{tier: basic}", "{plan: basic, weight: 0.007}", "{plan: basic, limits: {}}"):
        answer = await admin.ImportTenants(
            pb.ImportTenantsRequest(request_id=fresh(), file=f"tenants: {{acme: {text}}}")
        )
        assert (list(answer.unchanged), list(answer.updated)) == (["acme"], []), text
    text = "tenants: {acme: {tier: basic, budget: {daily_limit_usd: 2}}}"
    assert (await admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=text))).updated == ["acme"]
    after = (await admin.GetTenant(pb.GetTenantRequest(tenant_id="acme"))).details
    assert after.policy.limits.daily_budget_nano_usd == 2 * 10**9
    before.policy.limits.daily_budget_nano_usd = 2 * 10**9
    assert after.policy == before.policy
    (event,) = [
        event for event in await log_of(admin, tenant_id="acme") if event.action == "ImportTenants" and event.changes
    ]
    assert list(event.changes) == ["limits.daily_budget_nano_usd: unset -> 2000000000"]


async def test_a_wrong_file_is_refused_whole_with_every_problem_by_line(admin: Any, feed: PolicyFeed) -> None:
    wrong = (
        COMMON.replace("enterprise", "platinum").replace("500.0", "-5").replace(": low", ": lowest")
        + "  Bad Id: {tier: free}\n"
    )
    error = await error_of(admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=wrong)))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "WRONG_TENANTS_FILE")
    problems = [violation.description for violation in error.field_violations]
    assert sorted(problem.split(":")[1] for problem in problems) == ["10", "11", "3", "6"]
    assert feed.policies.tenants == {}
    for text in ("tenants: [", "- a", "", "tenants: {a: {tier: free}, a: {tier: free}}", "tenants: {a: 1}"):
        error = await error_of(admin.ImportTenants(pb.ImportTenantsRequest(request_id=fresh(), file=text)))
        assert error.field_violations, text


async def test_policies_in_files_are_not_administered(clock: FakeClock, feed: PolicyFeed) -> None:
    server = RpcServer("127.0.0.1:0")
    servicer = TenantServicer(feed, clock)
    server.add(quota_pb2_grpc.add_TenantServiceServicer_to_server, servicer, "forebay.api.quota.v1.TenantService")
    await server.start()
    async with connect(server.address, caller="test") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        error = await error_of(create(stub))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "POLICIES_IN_FILES")
        assert len((await stub.ListPlans(pb.ListPlansRequest())).plans) == 5
    await server.drain(0)
