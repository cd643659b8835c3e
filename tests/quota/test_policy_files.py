"""What is read from the files, and that a wrong one is refused whole."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.policy.keys import hash_key, new_key
from forebay.policy.model import Limits, ServiceClass, Thresholds
from forebay.quota.policies import PolicyFeed
from forebay.quota.policy_files import POLL_S, PolicyFiles
from forebay.testing.clock import FakeClock

PEPPER = b"0123456789abcdef"
KEY_ID, KEY = new_key()

TENANTS = """
tenants:
  acme:
    plan: enterprise
    display_name: Acme Corporation
    system_prompt: You work for Acme.
    models: [smollm2]
    weight: 2.5
    limits:
      requests_per_minute: 7
      daily_budget_usd: 0.1
    priced_by_plan: true
  globex: {plan: standard}
  initech:
    plan: basic
    service_class: gold
    suspended: true
"""

KEYS = f"""
keys:
  - key_id: {KEY_ID}
    tenant: acme
    hash: "{hash_key(PEPPER, KEY).hex()}"
    expires_at: 2030-01-01T00:00:00Z
    display_name: laptop
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "keys.yaml").write_text(KEYS)
    return tmp_path


@pytest.fixture
def files(folder: Path) -> PolicyFiles:
    return PolicyFiles(folder / "tenants.yaml", folder / "keys.yaml", PEPPER)


def rewrite(file: Path, text: str) -> None:
    """Replaces a file as editors do; its time is moved on, however coarse the file system's clock is."""
    before = file.stat().st_mtime_ns
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    os.utime(draft, ns=(before + 10**9, before + 10**9))
    draft.replace(file)


def problems(files: PolicyFiles) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        files.load()
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} problem(s) in the policies:"
    return lines


@pytest.mark.parametrize(
    ("name", "service_class", "weight_milli", "limits", "price"),
    [
        ("basic", ServiceClass.BRONZE, 500, (60, 5_000, 2), 2_000_000_000),
        ("standard", ServiceClass.SILVER, 1_000, (300, 25_000, 5), 1_500_000_000),
        ("premium", ServiceClass.GOLD, 2_000, (1_000, 100_000, 15), 1_000_000_000),
        ("enterprise", ServiceClass.GOLD, 3_000, (5_000, 500_000, 50), 800_000_000),
        ("free", ServiceClass.BRONZE, 500, (20, 50_000, 5), None),
    ],
)
def test_the_shipped_plans(
    files: PolicyFiles,
    name: str,
    service_class: ServiceClass,
    weight_milli: int,
    limits: tuple[int, int, int],
    price: int | None,
) -> None:
    plan = files.load().plans[name]
    of_plan = (plan.limits.requests_per_minute, plan.limits.tokens_per_minute, plan.limits.concurrent_requests)
    assert (plan.service_class, plan.weight_milli, of_plan) == (service_class, weight_milli, limits)
    assert (plan.nano_usd_per_million_tokens, plan.alert_percent) == (price, 90)


def test_pool_adapters_and_thresholds_of_a_tenant(files: PolicyFiles, folder: Path) -> None:
    rewrite(
        folder / "tenants.yaml",
        """tenants:
  acme:
    plan: basic
    pool: gold
    adapters: [support, sales]
    default_adapter: support
    thresholds: {throttle_percent: 90, hard_percent: 150}
  globex:
    plan: basic
""",
    )
    rewrite(folder / "keys.yaml", "keys: []")
    acme = files.load().tenants["acme"]
    assert (acme.pool, acme.adapters, acme.default_adapter) == ("gold", ("support", "sales"), "support")
    assert acme.thresholds == Thresholds(80, 90, 150)
    rewrite(
        folder / "tenants.yaml", "tenants: {acme: {plan: basic, thresholds: {warn_percent: 99, throttle_percent: 90}}}"
    )
    (problem,) = problems(files)
    assert "must rise from warn over throttle to hard" in problem


def test_the_free_plan_has_budgets(files: PolicyFiles) -> None:
    limits = files.load().plans["free"].limits
    assert (limits.daily_budget_nano_usd, limits.monthly_budget_nano_usd) == (10 * 10**9, 200 * 10**9)


def test_a_tenant_is_its_plan_with_its_own_values(files: PolicyFiles) -> None:
    tenants = files.load().tenants
    acme, globex, initech = tenants["acme"], tenants["globex"], tenants["initech"]
    assert acme.limits == Limits(
        requests_per_second=100,
        requests_per_minute=7,
        tokens_per_minute=500_000,
        concurrent_requests=50,
        daily_budget_nano_usd=100_000_000,
    )
    assert (acme.plan, acme.service_class, acme.weight_milli) == ("enterprise", ServiceClass.GOLD, 2_500)
    assert (acme.display_name, acme.models, acme.priced_by_plan) == ("Acme Corporation", ("smollm2",), True)
    assert acme.system_prompt == "You work for Acme."
    assert (globex.service_class, globex.weight_milli, globex.priced_by_plan) == (ServiceClass.SILVER, 1_000, False)
    assert globex.limits.requests_per_second == 50
    assert (initech.suspended, initech.limits.requests_per_second) == (True, 100)


def test_isolation_keys_differ_by_tenant_and_stay(files: PolicyFiles) -> None:
    keys = {tenant.isolation_key for tenant in files.load().tenants.values()}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {32}
    assert {tenant.isolation_key for tenant in files.load().tenants.values()} == keys


def test_keys_are_hashes(files: PolicyFiles) -> None:
    key = files.load().keys[KEY_ID]
    assert (key.tenant_id, key.hash, key.display_name) == ("acme", hash_key(PEPPER, KEY), "laptop")
    assert key.expires_at == 1_893_456_000.0


def test_every_problem_is_named_with_its_place(folder: Path, files: PolicyFiles) -> None:
    (folder / "tenants.yaml").write_text(
        """tenants:
  acme:
    plan: entrprise
    limits: {}
  Globex: {plan: basic}
  initech:
    plan: free
    limits:
      tokens_per_minute: 0
      tokens_per_hour: 5
    weight: 1.00001
    priced_by_plan: true
    service_class: platinum
"""
    )
    (folder / "keys.yaml").write_text(
        """keys:
  - {key_id: aaaaaaaaaaaa, tenant: acme, hash: 12}
  - {key_id: short, tenant: nobody, hash: ""}
"""
    )
    tenants, keys = folder / "tenants.yaml", folder / "keys.yaml"
    found = problems(files)
    places = {line.split(": ")[0] + " " + line.split(": ")[1] for line in found}
    assert places == {
        f"{tenants}:5 tenants.Globex.[key]",
        f"{tenants}:9 tenants.initech.limits.tokens_per_minute",
        f"{tenants}:10 tenants.initech.limits.tokens_per_hour",
        f"{tenants}:11 tenants.initech.weight",
        f"{tenants}:13 tenants.initech.service_class",
        f"{keys}:2 keys.0.hash",
        f"{keys}:3 keys.1.key_id",
        f"{keys}:3 keys.1.hash",
    }


def test_what_one_file_says_of_another_is_checked(folder: Path, files: PolicyFiles) -> None:
    (folder / "tenants.yaml").write_text(
        "tenants:\n  acme: {plan: none}\n  hooli: {plan: free, priced_by_plan: true}\n"
    )
    (folder / "keys.yaml").write_text(KEYS.replace("acme", "nobody") + KEYS.partition("keys:")[2])
    assert [line.rpartition("/")[2] for line in problems(files)] == [
        "tenants.yaml:2: tenants.acme.plan: there is no plan 'none'; there are basic, enterprise, free, premium, standard",
        "tenants.yaml:3: tenants.hooli.priced_by_plan: plan free has no usd_per_1000_tokens",
        "keys.yaml:4: keys.0.tenant: there is no tenant 'nobody'; there are acme, hooli",
        f"keys.yaml:9: keys.1.key_id: {KEY_ID} is given to a second key",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tenants: {acme: {plan: basic}, acme: {plan: free}}", "tenants.acme: is given a second time, on line 1"),
        ("tenants: [", "is not YAML"),
        ("", "must hold fields"),
        ("tenants: &all {acme: *all}", "is not YAML"),
        ("? [1, 2]\n: 3\n", "a list or a mapping cannot be a name"),
        ("tenants: {acme: {plan: basic, system_prompt: '" + 8_193 * "x" + "'}}", "at most 8192 bytes"),
    ],
)
def test_a_file_that_is_no_proper_yaml(folder: Path, files: PolicyFiles, text: str, problem: str) -> None:
    (folder / "tenants.yaml").write_text(text)
    assert any(problem in line for line in problems(files))


def test_files_that_cannot_be_read(folder: Path, files: PolicyFiles) -> None:
    (folder / "tenants.yaml").unlink()
    (folder / "keys.yaml").write_bytes(b"\xff\xfe\xff")
    assert [line.rpartition("/")[2] for line in problems(files)] == [
        f"tenants.yaml: cannot be read: {os.strerror(errno.ENOENT)}",
        "keys.yaml: is not UTF-8",
    ]


async def test_a_change_takes_effect_and_a_wrong_one_changes_nothing(
    folder: Path, files: PolicyFiles, clock: FakeClock
) -> None:
    feed = PolicyFeed(files.load(), clock)
    following = asyncio.create_task(files.follow(feed, clock))
    await asyncio.sleep(0)
    with feed.watch() as watch:
        rewrite(folder / "tenants.yaml", TENANTS.replace("weight: 2.5", "weight: -1"))
        clock.advance(POLL_S)
        told = asyncio.ensure_future(watch.next())
        await settled(following, clock)
        assert not told.done()

        rewrite(folder / "tenants.yaml", TENANTS.replace("weight: 2.5", "weight: 1"))
        rewrite(folder / "keys.yaml", "keys: []")
        clock.advance(POLL_S)
        edition = await told
    assert [(tenant.tenant_id, tenant.weight_milli) for tenant in edition.change.tenants] == [("acme", 1_000)]
    assert (edition.change.removed_keys, edition.change.removed_tenants) == ((KEY_ID,), ())
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def settled(following: asyncio.Task[None], clock: FakeClock) -> None:
    """Returns once `following` sleeps on the clock again."""
    while not clock._sleepers:
        assert not following.done()
        await asyncio.sleep(0.001)
