"""The store and the files beside it: what is imported, when, and what a wrong file does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.errors import Code, MeshError
from forebay.policy.keys import hash_key, new_key
from forebay.quota.domain.directory import Directory, Edit, Overrides, Tenant
from forebay.quota.policy_files import POLL_S, SHIPPED_PLANS, PolicyFiles
from forebay.quota.policy_store import Change, InMemoryPolicyStore
from forebay.quota.stored_policies import StoredPolicies
from forebay.testing.clock import FakeClock

PEPPER = b"0123456789abcdef"
KEY_ID, KEY = new_key()
TENANTS = (
    "tenants:\n  acme: {plan: enterprise, weight: 2.5, limits: {requests_per_minute: 7}}\n  globex: {plan: standard}\n"
)
KEYS = f'keys: [{{key_id: {KEY_ID}, tenant: acme, hash: "{hash_key(PEPPER, KEY).hex()}"}}]\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "keys.yaml").write_text(KEYS)
    return SHIPPED_PLANS, tmp_path / "tenants.yaml", tmp_path / "keys.yaml"


@pytest.fixture
def store() -> InMemoryPolicyStore:
    return InMemoryPolicyStore()


@pytest.fixture
def stored(store: InMemoryPolicyStore, clock: FakeClock) -> StoredPolicies:
    return StoredPolicies(store, PEPPER, clock)


async def test_an_empty_store_is_given_what_the_files_say(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, clock: FakeClock
) -> None:
    plans, tenants, keys = files
    feed = await stored.start(*files)
    assert feed.policies == PolicyFiles(tenants, keys, PEPPER, plans).load()
    events = await store.events(0, 100, "acme", False)
    assert [event.action.subject for event in events] == [f"key:{KEY_ID}", "tenant:acme"]
    assert not any("hash: " in line and "changed" not in line for event in events for line in event.action.changes)
    version = await store.version()
    again = StoredPolicies(store, PEPPER, clock)
    assert (await again.start(*files)).policies == feed.policies
    assert await store.version() == version  # the same files are not imported twice


async def test_the_store_is_the_truth_where_a_file_has_not_changed(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, clock: FakeClock
) -> None:
    feed = await stored.start(*files)
    own = Tenant("acme", "basic", Overrides(suspended=True))
    await stored.change(lambda _: (Edit(tenants=(own,), removed=("globex",)), ()))
    assert (feed.policies.tenants["acme"].suspended, set(feed.policies.tenants)) == (True, {"acme"})
    restarted = await StoredPolicies(store, PEPPER, clock).start(*files)
    assert restarted.policies == feed.policies


async def test_a_changed_file_is_imported_and_leaves_suspensions(
    stored: StoredPolicies, files: tuple[Path, Path, Path], clock: FakeClock
) -> None:
    feed = await stored.start(*files)
    await stored.change(lambda _: (Edit(tenants=(Tenant("acme", "basic", Overrides(suspended=True)),)), ()))
    files[1].write_text("tenants: {acme: {plan: premium}, hooli: {plan: free}}")
    await stored.import_files(*files)
    acme = feed.policies.tenants["acme"]
    assert (acme.plan, acme.suspended, set(feed.policies.tenants)) == ("premium", True, {"acme", "globex", "hooli"})


async def test_a_wrong_file_ends_the_first_start_only(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, clock: FakeClock
) -> None:
    files[1].write_text("tenants:\n  acme: {plan: none}\n  globex: {plan: basic, weight: -1}\n")
    with pytest.raises(ConfigError) as caught:
        await stored.start(*files)
    _, *problems = str(caught.value).splitlines()
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]
    files[1].write_text(TENANTS)
    feed = await stored.start(*files)
    files[1].write_text("tenants: {acme: {}}")
    assert (await StoredPolicies(store, PEPPER, clock).start(*files)).policies == feed.policies


async def test_what_another_replica_changes_is_noticed(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, clock: FakeClock
) -> None:
    feed = await stored.start(*files)
    running = asyncio.create_task(stored.follow(*files))
    await asyncio.sleep(0)
    with feed.watch() as watch:
        await store.commit(Change(await store.version(), Edit(removed=("globex",))), 1.0)
        clock.advance(POLL_S)
        assert (await watch.next()).change.removed_tenants == ("globex",)
        # And a change is decided on what is stored, also when the next look at it is yet to come.
        await store.commit(Change(await store.version(), Edit(removed=("acme",))), 2.0)
        seen = []
        await stored.change(lambda directory: (seen.append(directory.version), (Edit(), ()))[1], imported={"x": "y"})
        assert seen == [await store.version() - 1]
        assert feed.policies.tenants == {}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_change_that_another_replica_overtakes_is_decided_again(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await stored.start(*files)
    commit, seen = store.commit, []

    async def overtaken(change: Change, now: float) -> Directory:
        monkeypatch.setattr(store, "commit", commit)
        await commit(Change(await store.version(), Edit(removed=("globex",))), now)
        return await commit(change, now)

    monkeypatch.setattr(store, "commit", overtaken)
    await stored.change(lambda directory: (seen.append(set(directory.tenants)), (Edit(removed=("acme",)), ()))[1])
    assert seen == [{"acme", "globex"}, {"acme"}]
    assert feed.policies.tenants == {}


async def test_a_file_that_changes_while_the_store_is_away_is_imported_once_it_is_back(
    stored: StoredPolicies,
    files: tuple[Path, Path, Path],
    store: InMemoryPolicyStore,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = await stored.start(*files)
    running = asyncio.create_task(stored.follow(*files))
    await asyncio.sleep(0)
    imported, asked = store.imported, asyncio.Event()

    async def gone(_: str) -> str:
        monkeypatch.setattr(store, "imported", imported)
        asked.set()
        raise MeshError(Code.UNAVAILABLE, "POLICY_STORE_UNAVAILABLE", "gone")

    monkeypatch.setattr(store, "imported", gone)
    files[1].write_text("tenants: {hooli: {plan: free}}")
    with feed.watch() as watch:
        clock.advance(POLL_S)
        await asked.wait()
        for _ in range(5):  # until it sleeps again
            await asyncio.sleep(0)
        clock.advance(POLL_S)
        async with asyncio.timeout(5):
            assert [tenant.tenant_id for tenant in (await watch.next()).change.tenants] == ["hooli"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_store_that_is_gone_leaves_the_policies_in_force(
    stored: StoredPolicies, files: tuple[Path, Path, Path], store: InMemoryPolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await stored.start(*files)
    before = feed.policies

    async def gone(*_: object) -> None:
        raise MeshError(Code.UNAVAILABLE, "POLICY_STORE_UNAVAILABLE", "gone")

    monkeypatch.setattr(store, "commit", gone)
    with pytest.raises(MeshError):
        await stored.change(lambda _: (Edit(removed=("acme",)), ()))
    assert feed.policies == before
