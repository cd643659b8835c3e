"""The policy store: one suite on the twin, on SQLite and, where it is installed, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.operations import Operations

from forebay.errors import Code, MeshError
from forebay.policy.model import Canary, CanaryStep, KeyPolicy, Limits, LossPolicy, ServiceClass, Thresholds
from forebay.quota.domain.audit import Action, Refusal, unbroken
from forebay.quota.domain.directory import Directory, Edit, Key, Overrides, Tenant
from forebay.quota.domain.plans import Plan
from forebay.quota.policy_store import ANSWERS_KEPT_S, Answer, Change, InMemoryPolicyStore, PolicyStore
from forebay.quota.sql_policy_store import MIGRATIONS, SqlPolicyStore
from forebay.testing.postgres import PostgresServer

PLAN = Plan("basic", ServiceClass.BRONZE, 500, Limits(concurrent_requests=2), None, 90)
RICH = Tenant(
    "acme",
    "basic",
    Overrides(
        limits=Limits(tokens_per_minute=7, daily_budget_nano_usd=10**15),
        display_name="Ämse",
        service_class=ServiceClass.GOLD,
        model_limits={"m": Limits(tokens_per_day=3)},
        models=("m", "n"),
        loss_policy=LossPolicy.FAIL_OPEN,
        thresholds=Thresholds(50, 90, 120),
        system_prompt="Be brief.",
        suspended=False,
        canary=Canary(1_700_000_000.25, (CanaryStep(10, 60),)),
    ),
)
KEY = Key(KeyPolicy("k" * 12, "acme", bytes(range(32)), expires_at=1.5, models=("m",), limits=Limits(tokens_per_day=1)))
DONE = Action(5.0, "admin/alice", "CreateTenant", "acme", "tenant:acme", ("a: b -> c",), None, "a" * 32)
REFUSED = Action(6.0, "viewer/bob", "DeleteTenant", "globex", refusal=Refusal(7, "ROLE", "no"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=[pytest.mark.system, pytest.mark.slow])])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PolicyStore]:
    """Every implementation of the port in turn, empty."""
    if request.param == "memory":
        yield InMemoryPolicyStore()
        return
    url = f"sqlite:///{tmp_path}/policies.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    sql = SqlPolicyStore(url)
    await sql.migrate()
    yield sql
    sql.close()


async def test_an_empty_store_has_nothing(store: PolicyStore) -> None:
    assert await store.load() == Directory()
    assert await store.version() == 0
    assert await store.answer("a" * 32, 0.0) is None
    assert await store.imported("tenants") == ""
    assert await store.events(0, 10, "", False) == []


async def test_what_is_put_in_comes_back_whole(store: PolicyStore) -> None:
    edit = Edit(
        plans=(PLAN,),
        tenants=(RICH, Tenant("globex", "basic"), Tenant("hooli", "basic", Overrides(models=()))),
        keys=(
            KEY,
            Key(replace(KEY.policy, key_id="z", models=()), "y"),
            Key(replace(KEY.policy, key_id="n", models=None)),
        ),
    )
    committed = await store.commit(Change(0, edit, imported={"tenants": "d"}), 100.5)
    assert committed == await store.load() == Directory().edited(edit, 100.5)
    assert await store.version() == 1
    assert await store.imported("tenants") == "d"
    await store.commit(Change(1, Edit(), imported={"tenants": "e"}), 101.0)
    assert await store.imported("tenants") == "e"


async def test_changes_follow_one_another(store: PolicyStore) -> None:
    first = await store.commit(Change(0, Edit(plans=(PLAN,), tenants=(RICH,), keys=(KEY,))), 1.0)
    changed = Tenant("acme", "basic", Overrides(suspended=True))
    second = await store.commit(Change(1, Edit(tenants=(changed,))), 2.0)
    assert (second.tenants["acme"].version, second.tenants["acme"].created_at) == (2, 1.0)
    assert (second.tenants["acme"].updated_at, second.keys) == (2.0, first.keys)
    third = await store.commit(Change(2, Edit(removed=("acme",))), 3.0)
    assert (third.tenants, third.keys, third.removed) == ({}, {}, {"acme"})
    assert await store.load() == third


async def test_a_change_decided_on_an_older_version_changes_nothing(store: PolicyStore) -> None:
    await store.commit(Change(0, Edit(plans=(PLAN,))), 1.0)
    with pytest.raises(MeshError) as caught:
        await store.commit(Change(0, Edit(tenants=(RICH,)), (DONE,), Answer("a" * 32, "d", b"r")), 2.0)
    assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "STORE_CHANGED")
    assert (await store.load()).tenants == {}
    assert await store.events(0, 10, "", False) == []
    assert await store.answer("a" * 32, 2.0) is None


async def test_answers_are_kept_for_a_day(store: PolicyStore) -> None:
    answer = Answer("a" * 32, "d" * 64, b"\x00response")
    await store.commit(Change(0, Edit(), answer=answer), 1.0)
    assert await store.answer("a" * 32, ANSWERS_KEPT_S) == answer
    assert await store.answer("a" * 32, 2.0 + ANSWERS_KEPT_S) is None
    await store.commit(Change(1, Edit(), answer=answer), 2.0 + ANSWERS_KEPT_S)  # the id may be taken again


async def test_a_request_is_answered_once(store: PolicyStore) -> None:
    await store.commit(Change(0, Edit(), answer=Answer("a" * 32, "d" * 64, b"first")), 1.0)
    with pytest.raises(MeshError) as caught:
        await store.commit(Change(1, Edit(plans=(PLAN,)), (DONE,), Answer("a" * 32, "d" * 64, b"second")), 2.0)
    assert caught.value.reason == "STORE_CHANGED"
    assert (await store.load()).plans == {}
    assert (await store.answer("a" * 32, 2.0)).response == b"first"  # type: ignore[union-attr]


async def test_the_audit_log_is_dense_and_each_event_vouches_for_those_before(store: PolicyStore) -> None:
    await store.commit(Change(0, Edit(), (DONE, replace(DONE, subject="key:a"))), 1.0)
    await store.record(REFUSED)
    await store.commit(Change(1, Edit(), (DONE,)), 2.0)
    events = [*reversed(await store.events(0, 10, "", False))]
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert [event.action for event in events] == [DONE, replace(DONE, subject="key:a"), REFUSED, DONE]
    assert unbroken(events)
    forged = replace(events[1], action=replace(DONE, actor="admin/bob"))
    assert not unbroken([events[0], forged, *events[2:]])
    assert not unbroken([events[0], *events[2:]])


async def test_the_audit_log_is_listed_by_tenant_refusal_and_page(store: PolicyStore) -> None:
    for action in (DONE, REFUSED, DONE):
        await store.record(action)
    assert [event.number for event in await store.events(0, 2, "", False)] == [3, 2]
    assert [event.number for event in await store.events(2, 2, "", False)] == [1]
    assert [event.number for event in await store.events(0, 9, "acme", False)] == [3, 1]
    assert [event.number for event in await store.events(0, 9, "", True)] == [2]


async def test_what_is_stored_outlives_the_process_and_is_migrated_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/policies.sqlite"
    first = SqlPolicyStore(url)
    await first.migrate()
    kept = await first.commit(Change(0, Edit(plans=(PLAN,), tenants=(RICH,), keys=(KEY,)), (DONE,)), 1.0)
    first.close()
    second = SqlPolicyStore(url)
    await second.migrate()
    assert await second.load() == kept
    second.close()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
async def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.quota.sql_policy_store.PATIENCE_S", 1)
    url = f"sqlite:///{tmp_path}/policies.sqlite"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    store, other = SqlPolicyStore(url), sa.create_engine(url)
    await store.migrate()
    with other.begin() as transaction:
        transaction.execute(sa.text("UPDATE state SET version = version"))
        with pytest.raises(MeshError) as caught:
            await store.load()
    assert (caught.value.code, caught.value.retry_after) == (Code.UNAVAILABLE, 1.0)
    assert await store.load() == Directory()
    store.close()
    other.dispose()


@pytest.mark.system
async def test_a_database_that_may_only_be_read_is_away(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    store, other = SqlPolicyStore(url), sa.create_engine(url)
    await store.migrate()
    store.close()
    with other.begin() as transaction:  # as on a standby, before a failover and after one
        transaction.execute(sa.text(f"ALTER DATABASE {other.url.database} SET default_transaction_read_only = on"))
    other.dispose()
    with pytest.raises(MeshError) as caught:
        await store.load()
    assert (caught.value.reason, await store.version()) == ("POLICY_STORE_UNAVAILABLE", 0)
    store.close()


async def test_lists_of_models_that_were_stored_empty_go_on_allowing_all(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/policies.sqlite"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for name, overrides in (("all", '{"models": [], "pool": "p"}'), ("some", '{"models": ["m"]}'), ("plain", "{}")):
            document = f'{{"tenant_id": "{name}", "plan": "basic", "overrides": {overrides}}}'
            row = {"name": name, "document": document}
            connection.execute(sa.text("INSERT INTO tenants VALUES (:name, :document, 1, 1.0, 1.0)"), row)
    engine.dispose()
    store = SqlPolicyStore(url)
    await store.migrate()
    tenants = (await store.load()).tenants
    assert {name: entry.value.overrides.models for name, entry in tenants.items()} == {
        "all": None, "some": ("m",), "plain": None,
    }  # fmt: skip
    assert tenants["all"].value.overrides.pool == "p"
    none = Tenant("none", "basic", Overrides(models=()))
    await store.commit(Change(0, Edit(tenants=(none,))), 1.0)
    await store.migrate()
    assert (await store.load()).tenants["none"].value == none
    store.close()


async def test_a_migration_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqlPolicyStore(f"sqlite:///{tmp_path}/policies.sqlite")
    create_table = Operations.create_table

    def broken_off(operations: Operations, name: str, *columns: object, **options: object) -> object:
        if name == "answers":
            raise RuntimeError("killed")
        return create_table(operations, name, *columns, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", broken_off)
        with pytest.raises(RuntimeError):
            await store.migrate()
    await store.migrate()
    assert await store.load() == Directory()
    store.close()


async def test_replicas_that_write_at_once_leave_no_gap(tmp_path: Path) -> None:
    stores = [SqlPolicyStore(f"sqlite:///{tmp_path}/policies.sqlite") for _ in range(3)]
    await stores[0].migrate()

    async def write(store: SqlPolicyStore, number: int) -> int:
        try:
            await store.commit(Change(0, Edit(plans=(replace(PLAN, name=f"p{number}"),)), (DONE,)), 1.0)
        except MeshError:
            await store.record(REFUSED)
            return 0
        return 1

    assert sum(await asyncio.gather(*(write(store, number) for number, store in enumerate(stores * 2)))) == 1
    events = [*reversed(await stores[0].events(0, 10, "", False))]
    assert (len(events), unbroken(events), await stores[1].version()) == (6, True, 1)
    for store in stores:
        store.close()


async def test_a_store_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    store = SqlPolicyStore(f"sqlite:///{tmp_path}/no/such/folder.sqlite")
    with pytest.raises(MeshError) as caught:
        await store.load()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "POLICY_STORE_UNAVAILABLE")
