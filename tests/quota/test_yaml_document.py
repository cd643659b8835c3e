"""Files as people, and not only friends, may write them: each is read, or refused with the line of what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forebay.policy.model import Canary, CanaryStep, Limits, LossPolicy, ServiceClass
from forebay.quota.domain.directory import Directory, Edit, Overrides, Tenant
from forebay.quota.domain.plans import Plan
from forebay.quota.file_schema import KeysFile
from forebay.quota.policy_files import check
from forebay.quota.tenants_import import plan_import
from forebay.quota.yaml_document import Document

BASIC = Plan("basic", ServiceClass.BRONZE, 500, Limits(concurrent_requests=2), None, 90)
BOMB = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tenants: " + "[" * 100_000, "file:1: is not YAML: is nested more than 32 deep"),
        ("".join(f"{' ' * level}a:\n" for level in range(50)), "file:32: is not YAML: is nested more than 32 deep"),
        ("tenants:\n  a: '[[['\n  b: # [\n    " + "[{" * 1_000, "file:4: is not YAML: is nested more than 32 deep"),
        ("a: '" + "[" * 40 + "'\nb: [", "file:3: is not YAML: look here for a wrong indent, colon, quote or bracket"),
        ("a: \0", "file:1: is not YAML: a character is not allowed"),
        ("x: 1\na: *b", "file:2: is not YAML: an anchor (&name) or an alias (*name) is wrong"),
        ("x: 1\n[a]: 2", "file:2: is not YAML: this value or key has a form that is not allowed here"),
        (BOMB, "file:1: is not YAML: holds too much once its aliases are written out"),
        ("tenants: &a\n  x: *a\n", "file:1: is not YAML: holds too much once its aliases are written out"),
        ("tenants:\n  a: 2026-13-45\n", "file:2: is not YAML: '2026-13-45' is no valid date"),
        ("tenants:\n  a: !!timestamp soon\n", "file:2: is not YAML: 'soon' is no valid date"),
        ("tenants:\n  a: !!bool soon\n", "file:2: is not YAML: 'soon' is no valid date"),
        (
            "tenants:\n  a: !!int " + "9" * 5_000,
            "file:2: is not YAML: '9999999999999999999999999999999999999999'... is no valid",
        ),
        ("tenants:\n  a: !!python/name:os.system\n", "file:2: is not YAML: the tag 'tag:yaml.org,2002:python/name:os"),
        ("a: 1\nb: {\na: 2}\na: 3", "file:1: a: is given a second time, on line 4"),
    ],
    ids=[
        "deep",
        "deep blocks",
        "deep after quotes",
        "brackets in quotes",
        "control character",
        "alias",
        "key",
        "bomb",
        "loop",
        "date",
        "no date",
        "no bool",
        "long number",
        "tag",
        "twice",
    ],
)
def test_what_is_no_file_of_ours_is_refused_by_line(text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.quota.yaml_document.MAX_VALUES", 10_000)
    problems = Document.parse(Path("file"), text).problems
    assert [line[: len(problem)] for line in problems] == [problem]


def test_anchors_and_merges_are_read() -> None:
    document = Document.parse(Path("file"), "a: &a {tier: basic, x: 1}\nb: {<<: *a, x: 2}\n")
    assert (document.data["b"], document.problems) == ({"tier": "basic", "x": 2}, [])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{tier: basic, budget: {daily_limit_usd: .nan}}", "a.budget.daily_limit_usd: must be a number"),
        ("{tier: basic, budget: {daily_limit_usd: .inf}}", "a.budget.daily_limit_usd: must be from 0 to 1000000"),
        ("{tier: basic, budget: {daily_limit_usd: -1}}", "a.budget.daily_limit_usd: must be from 0 to 1000000"),
        (
            "{tier: basic, rate_limits: {requests_per_minute: 1e3}}",
            "a.rate_limits.requests_per_minute: must be a whole number",
        ),
        ("{plan: basic, weight: .nan}", "a.weight: must be a number"),
        ("{tier: basic, bugdet: 1}", "a.bugdet: is not a known field"),
        ("{tier: [basic]}", "a.tier: must be a text"),
        ("{priority: high}", "a: must say its plan, as `plan:` or, in the common shape, as `tier:`"),
        ("basic", "a: must say its plan, as `plan:` or, in the common shape, as `tier:`"),
        ("", "a: must say its plan, as `plan:` or, in the common shape, as `tier:`"),
    ],
)
def test_what_a_tenant_cannot_be_is_refused_by_line(entry: str, problem: str) -> None:
    directory = Directory().edited(Edit(plans=(BASIC,)), 1.0)
    document = Document.parse(Path("file"), f"tenants:\n  a: {entry}\n")
    plan_import(document, directory)
    problem = f"file:2: tenants.{problem}"
    assert [line[: len(problem)] for line in document.problems] == [problem]


@pytest.mark.parametrize(
    ("entry", "limits", "prompt"),
    [
        ("{plan: basic, limits: {tokens_per_minute: 7}}", Limits(tokens_per_minute=7), None),
        (
            "{tier: basic, rate_limits: {tokens_per_minute: 7}}",
            Limits(tokens_per_minute=7, tokens_per_day=9),
            "Be brief.",
        ),
    ],
    ids=["our shape", "the common one"],
)
def test_what_a_file_has_no_word_for_stays(entry: str, limits: Limits, prompt: str | None) -> None:
    before = Overrides(
        Limits(requests_per_minute=3, tokens_per_day=9), system_prompt="Be brief.", display_name="A", suspended=True,
        loss_policy=LossPolicy.FAIL_OPEN, time_zone="Asia/Tokyo", canary=Canary(1.0, (CanaryStep(10, 60),)),
    )  # fmt: skip
    directory = Directory().edited(Edit(plans=(BASIC,), tenants=(Tenant("a", "basic", before),)), 1.0)
    document = Document.parse(Path("file"), f"tenants: {{a: {entry}}}")
    planned = plan_import(document, directory)
    (tenant,) = planned.edit.tenants
    assert tenant.overrides == replace(before, limits=limits, system_prompt=prompt, display_name=None)
    assert planned.updated == ["a"]
    assert plan_import(document, directory.edited(planned.edit, 2.0)).unchanged == ["a"]


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
def test_a_key_expires_in_a_year_that_messages_can_say(moment: str) -> None:
    key = f"key_id: {'a' * 12}\n  tenant: acme\n  hash: '{'0' * 64}'\n  expires_at: {moment}\n"
    document = Document.parse(Path("file"), f"keys:\n- {key}")
    assert check(document, KeysFile) is None
    assert document.problems == ["file:5: keys.0.expires_at: must be from 1970 to 9998"]
