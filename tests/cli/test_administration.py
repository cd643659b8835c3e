"""The administrators' commands, against quota as it is wired."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.api.quota.v1 import quota_pb2
from forebay.cli.administration import print_limits
from forebay.cli.main import main
from forebay.cli.settings import assign, described
from forebay.policy.keys import parse_key_id

TENANTS = "tenants:\n  acme: {tier: enterprise, priority: low}\n  globex: {tier: basic}\n"


@pytest.fixture
def forebay(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command; returns what it printed, both streams after one another where it failed."""

    def run(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--data", str(data)])
        printed = capsys.readouterr()
        assert (caught.value.code or 0) == status, printed.err
        return printed.out if status == 0 else printed.out + printed.err

    return run


def test_settings_are_fields_and_values() -> None:
    tenant = quota_pb2.TenantPolicy()
    paths = assign(
        tenant,
        ["limits.tokens_per_minute=5000", "models=[a, b]", "service_class=gold", "suspended=true",
         'canary={"steps": [{"percent": 10, "holds_for": "60s"}]}'],
    )  # fmt: skip
    assert paths == ["limits.tokens_per_minute", "model_scope", "service_class", "suspended", "canary"]
    assert (tenant.limits.tokens_per_minute, list(tenant.model_scope.models), tenant.suspended) == (
        5_000,
        ["a", "b"],
        True,
    )
    assert (tenant.service_class, tenant.canary.steps[0].holds_for.seconds) == (quota_pb2.SERVICE_CLASS_GOLD, 60)
    assign(tenant, ["display_name=007", "canary={started_at: 2030-01-01T00:00:00Z, steps: []}"])
    assert (tenant.display_name, tenant.canary.started_at.seconds) == ("007", 1_893_456_000)
    key = quota_pb2.KeyPolicy()
    assign(key, ["expires_at=2030-01-01T00:00:00Z"])
    assert key.expires_at.seconds == 1_893_456_000


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("limits", "'limits' must be FIELD=VALUE"),
        ("limits.none=1", "'limits.none' is no field that can be set; limits has requests_per_second, "),
        (
            "limits.token_per_minute=1",
            "'limits.token_per_minute' is no field that can be set; did you mean limits.tokens_per_minute?",
        ),
        (
            "tokens_per_minute=1",
            "'tokens_per_minute' is no field that can be set; did you mean limits.tokens_per_minute?",
        ),
        ("plam=x", "'plam' is no field that can be set; did you mean plan?"),
        ("colour=x", "'colour' is no field that can be set; there are display_name, plan, service_class, weight, "),
        ("thresholds.warn_percent=1", "'thresholds.warn_percent' is no field that can be set"),
        ("tenant_id=globex", "'tenant_id' is no field that can be set"),
        ("isolation_key=x", "'isolation_key' is no field that can be set"),
        ("weight=many", "weight must be a number such as 2.5, in whole thousandths, not 'many'"),
        ("weight=0.0001", "weight must be a number such as 2.5, in whole thousandths, not '0.0001'"),
        ("weight=-1", "weight must be from 0 to 4,294,967, not -1"),
        ("weight=1e3", "weight must be a number such as 2.5"),
        ("weight=nan", "weight must be a number such as 2.5"),
        ("weight=010", "weight must be a number such as 2.5"),
        ("weight_milli=2500", "weight_milli is written as weight, in a number such as 2.5"),
        (
            "limits.daily_budget_nano_usd=5",
            "limits.daily_budget_nano_usd is written as limits.daily_budget_usd, in USD",
        ),
        ("limits.daily_budget_usd=cheap", "limits.daily_budget_usd must be USD, a number such as 1.50, not 'cheap'"),
        ("limits.daily_budget_usd=99999999999999", "limits.daily_budget_usd must be from 0 to 9,223,372,036, not 9999"),
        (
            "limits.tokens_per_day=99999999999999999999",
            "limits.tokens_per_day must be from 0 to 9,223,372,036,854,775,807",
        ),
        pytest.param(
            f"limits.tokens_per_day={'9' * 5000}",
            "limits.tokens_per_day must be a whole number, not '999",
            id="many digits",
        ),
        ("alert_percent=5000000000", "alert_percent must be from 0 to 4,294,967,295, not 5000000000"),
        ("limits.tokens_per_minute=1.5", "limits.tokens_per_minute must be a whole number, not '1.5'"),
        ("service_class=tin", "service_class must be one of gold, silver, bronze, not 'tin'"),
        ("models=[", "models must be a list such as [a, b], not '['"),
        ("suspended=maybe", "suspended must be true or false, not 'maybe'"),
        ("suspended=yes", "suspended must be true or false, not 'yes'"),
        ("models=a", "models must be a list such as [a, b], not 'a'"),
        ("models=[1]", "models must be a list such as [a, b], not '[1]'"),
        ("models=[&a x, *a]", "models must be a list such as [a, b]"),
        pytest.param(f"canary={'[' * 5000}", "canary must be like {steps: ", id="deep"),
        ("canary={step: 1}", "canary must be like {steps: [{percent: 10, holds_for: 1h}]}, not '{step: 1}'"),
        ("canary={steps: [{holds_for: soon}]}", "canary must be like {steps: [{percent: 10, holds_for: 1h}]}, not "),
        ("canary=1h", "canary must be like {steps: [{percent: 10, holds_for: 1h}]}, not '1h'"),
        ("thresholds={warn: 1}", "thresholds must be like {warn_percent: 80, "),
        ("model_limits={m: {daily_budget_usd: x}}", "model_limits...daily_budget_usd must be USD"),
    ],
)
def test_a_setting_that_cannot_be_says_what_could(setting: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}"):
        assign(quota_pb2.TenantPolicy(), [setting])


def test_settings_are_in_the_words_and_units_of_the_tenants_file() -> None:
    tenant = quota_pb2.TenantPolicy()
    paths = assign(
        tenant,
        [
            "weight=2.5", "limits.daily_budget_usd=0.30", "limits.tokens_per_minute=1_000", "models=[no, 010]",
            "model_limits={m: {monthly_budget_usd: 1.5, tokens_per_day: 7}}", "canary={steps: [{percent: 10, holds_for: 1h}]}",
        ],
    )  # fmt: skip
    assert {"weight_milli", "limits.daily_budget_nano_usd", "model_limits"} <= set(paths)
    assert (tenant.weight_milli, tenant.limits.daily_budget_nano_usd) == (2_500, 300_000_000)
    assert tenant.limits.tokens_per_minute == 1_000
    assert (tenant.model_limits["m"].monthly_budget_nano_usd, tenant.model_limits["m"].tokens_per_day) == (
        1_500_000_000,
        7,
    )
    assert tenant.canary.steps[0].holds_for.seconds == 3_600
    said = {name: value for _, name, value in described(tenant)}
    assert said["weight"] == "2.5"
    assert said["models"] == "no, 010"
    assert said["limits.daily_budget_usd"] == "0.30"
    assert said["model_limits.m.monthly_budget_usd"] == "1.50"
    assert said["canary.steps.1.holds_for"] == "1h"
    plan = quota_pb2.Plan()
    assign(plan, ["usd_per_1000_tokens=0.000002"])
    assert plan.nano_usd_per_million_tokens == 2_000_000
    assert [value for _, name, value in described(plan) if name == "usd_per_1000_tokens"] == ["0.000002"]
    with pytest.raises(ValueError, match="weight is set twice; say it once"):
        assign(tenant, ["weight=1", "weight=2"])


def test_an_empty_list_of_models_is_shown_and_what_may_not_exist_is_warned_of(
    forebay: Callable[..., str], capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    forebay("tenants", "create", "wonka", "--plan", "basic")
    with pytest.raises(SystemExit):
        main(["tenants", "update", "wonka", "--set", "models=[gpt-4]", "--set", "pool=gold", "--data", str(data)])
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: tenant.models could not be checked: no router is connected to this quota" in told
    assert "warning: tenant.pool could not be checked: no worker is connected to this quota" in told
    shown = {tuple(line.split()) for line in forebay("tenants", "update", "wonka", "--set", "models=[]").splitlines()}
    assert ("models", "none", "own") in shown
    assert "none" in next(line for line in forebay("tenants", "list").splitlines() if line.startswith("wonka"))
    assert "models" not in forebay("tenants", "update", "wonka", "--unset", "models")
    assert "must be from 1 to 1,000,000 thousandths" in forebay(
        "tenants", "update", "wonka", "--set", "weight=0", status=1
    )
    forebay("tenants", "delete", "wonka", "--yes")


def test_a_file_is_imported_and_its_tenants_are_shown(forebay: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(TENANTS)
    assert "acme, globex" in forebay("tenants", "import", str(file), "--dry-run")
    assert forebay("tenants", "list", "--json") == ""
    assert json.loads(forebay("tenants", "import", str(file), "--json"))["created"] == ["acme", "globex"]
    assert [json.loads(line)["tenant_id"] for line in forebay("tenants", "list", "--json").splitlines()] == [
        "acme",
        "globex",
    ]
    assert "enterprise" in forebay("tenants", "list")
    file.write_text(TENANTS.replace("basic", "none") + "  x: 1\n")
    text = forebay("tenants", "import", str(file), status=1)
    assert f"\n  {file}:3: tenants.globex.tier: there is no plan 'none'" in text
    assert f"\n  {file}:4: tenants.x: must say its plan" in text
    file.write_bytes(b"\xff")
    assert "is not UTF-8" in forebay("tenants", "import", str(file), status=2)


def test_a_tenant_is_made_changed_suspended_and_removed(forebay: Callable[..., str]) -> None:
    forebay("tenants", "create", "hooli", "--plan", "basic", "--set", "limits.tokens_per_minute=7")
    shown = json.loads(forebay("tenants", "show", "hooli", "--json"))
    assert (shown["policy"]["limits"]["tokens_per_minute"], shown["overrides"]) == ("7", "limits.tokensPerMinute")
    text = forebay(
        "tenants", "update", "hooli", "--unset", "limits", "--set", "display_name=Hooli Inc", "--plan", "premium"
    )
    assert "Hooli Inc" in text
    assert "100000" in text
    assert "suspended" in forebay("tenants", "suspend", "hooli", "--reason", "unpaid")
    assert "(suspended)" in forebay("tenants", "list")
    assert "served" in forebay("tenants", "resume", "hooli")
    assert "removed" in forebay("tenants", "delete", "hooli", "--yes")
    assert "TENANT_NOT_FOUND" in forebay("tenants", "show", "hooli", status=1)
    forebay("tenants", "update", "hooli", "--set", "nonsense", status=2)
    assert "say what is to change" in forebay("tenants", "update", "hooli", status=2)


def test_a_tenant_is_shown_field_by_field(forebay: Callable[..., str]) -> None:
    text = forebay(
        "tenants", "create", "umbrella", "--plan", "basic", "--set", "models=[a, b]", "--set", "stop_on_budget=true",
        "--set", "model_limits={a: {tokens_per_day: 7}}", "--set", "canary={steps: [{percent: 10, holds_for: 60s}]}",
    )  # fmt: skip
    shown = {tuple(line.split()) for line in text.splitlines()}
    assert {
        ("models", "a,", "b", "own"),
        ("stop_on_budget", "true", "own"),
        ("model_limits.a.tokens_per_day", "7", "own"),
        ("canary.steps.1.percent", "10", "own"),
        ("service_class", "bronze"),
    } <= shown


def test_limits_are_shown_beside_the_ledger(forebay: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    forebay("tenants", "limits", "acme", status=1)  # nobody counts here
    compared = {"as_of": {"seconds": 1_700_000_000}, "counted": 5_000, "recorded": 3_000, "difference": 2_000}
    states = [
        quota_pb2.LimitState(limit="concurrent_requests", value=7, used=3),
        quota_pb2.LimitState(limit="tokens_per_day", value=90_000, used=5_100, comparison=compared),
        quota_pb2.LimitState(limit="daily_budget_nano_usd", value=10_000_000_000, used=13_500),
    ]
    print_limits(quota_pb2.PeekResponse(limits=states), as_json=False)
    text = capsys.readouterr().out
    assert "+2,000" in text
    assert "$10.00" in text
    assert "$0.0000135" in text
    assert "equal" not in text
    print_limits(quota_pb2.PeekResponse(limits=states), as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[1])["comparison"]["difference"] == "2000"


def test_keys_are_issued_rotated_and_revoked(forebay: Callable[..., str]) -> None:
    forebay("tenants", "create", "initech", "--plan", "basic")
    secret = forebay(
        "keys", "issue", "initech", "--name", "laptop", "--days", "30", "--set", "limits.requests_per_minute=5"
    )
    old = str(parse_key_id(secret.strip()))
    gone = str(parse_key_id(forebay("keys", "issue", "initech").strip()))
    forebay("keys", "rotate", gone, "--overlap-hours", "0")
    assert f"{gone}  " in (text := forebay("keys", "list", "initech"))
    assert "expired, replaced by " in text
    new = json.loads(forebay("keys", "rotate", old, "--overlap-hours", "1", "--json"))
    assert new["replaced"]["replaced_by"] == parse_key_id(new["secret"])
    forebay("keys", "issue", "initech", "--set", "nonsense", status=2)
    forebay("keys", "revoke", secret.strip())  # the whole key stands for its id, and goes no further
    forebay("keys", "issue", "initech", "--set", "tenant_id=acme", status=2)
    text = forebay("keys", "list", "initech")
    assert ("revoked" in text, "laptop" in text, secret.strip() in text) == (True, True, False)
    assert len(forebay("keys", "list", "initech", "--json").splitlines()) == 4
    actions = [
        json.loads(line)["action"] for line in forebay("audit", "list", "--tenant", "initech", "--json").splitlines()
    ]
    rotated = ["RotateKey", "RotateKey"]
    assert actions == ["RevokeKey", *rotated, *rotated, "IssueKey", "IssueKey", "CreateTenant"]
    assert "admin/admin" in forebay("audit", "list", "--limit", "3")


def test_plans_are_changed(forebay: Callable[..., str]) -> None:
    assert "9 req/min" in forebay("plans", "update", "free", "--set", "limits.requests_per_minute=9")
    listed = [json.loads(line) for line in forebay("plans", "list", "--json").splitlines()]
    assert {plan["name"] for plan in listed} == {"basic", "enterprise", "free", "premium", "standard"}
    assert "premium" in forebay("plans", "list")
    forebay("plans", "update", "free", "--set", "weight=0", status=1)
    assert "plan.weight_milli" in forebay("audit", "list", "--refused", "--json")
