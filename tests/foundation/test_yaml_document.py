"""Files as people, and not only friends, may write them: each is read, or refused with the line of what is wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forebay.policy.model import Canary, CanaryStep, Limits, LossPolicy, ServiceClass, Thresholds
from forebay.quota.domain.directory import Directory, Edit, Overrides, Tenant
from forebay.quota.domain.plans import Plan
from forebay.quota.file_schema import KeysFile
from forebay.quota.tenants_import import plan_import
from forebay.yaml_files.document import Document
from forebay.yaml_files.shape import check

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
        ("a: '" + "[" * 40 + "'\nb: [", "file:2: is not YAML: look here for a wrong indent, colon, quote or bracket"),
        ("a: \0", "file:1: is not YAML: a character is not allowed"),
        ("x: 1\na: *b", "file:2: is not YAML: an anchor (&name) or an alias (*name) is wrong"),
        ("x: 1\n[a]: 2", "file:2: is not YAML: a list or a mapping cannot be a name"),
        (BOMB, "file:1: is not YAML: holds too much once its aliases are written out"),
        ("tenants: &a\n  x: *a\n", "file:1: is not YAML: holds too much once its aliases are written out"),
        ("tenants:\n  a: 2026-13-45\n", "file:2: tenants.a: 2026-13-45 is a date for some readers"),
        ("tenants:\n  a: !!timestamp soon\n", "file:2: is not YAML: the tag 'tag:yaml.org,2002:timestamp' is not"),
        ("tenants:\n  a: !!bool soon\n", "file:2: is not YAML: the tag 'tag:yaml.org,2002:bool' is not allowed"),
        (
            "tenants:\n  a: !!int " + "9" * 5_000,
            "file:2: is not YAML: the tag 'tag:yaml.org,2002:int' is not allowed",
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
    monkeypatch.setattr("forebay.yaml_files.document.MAX_VALUES", 10_000)
    problems = Document.parse(Path("file"), text).problems
    assert [line[: len(problem)] for line in problems] == [problem]


def test_anchors_and_merges_are_read() -> None:
    document = Document.parse(Path("file"), "a: &a {tier: basic, x: 1}\nb: {<<: *a, x: 2}\n")
    assert (document.data["b"], document.problems) == ({"tier": "basic", "x": 2}, [])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{tier: basic, budget: {daily_limit_usd: .nan}}", "a.budget.daily_limit_usd: .nan is no number"),
        ("{tier: basic, budget: {daily_limit_usd: .inf}}", "a.budget.daily_limit_usd: .inf is no number"),
        ("{tier: basic, budget: {daily_limit_usd: -1}}", "a.budget.daily_limit_usd: must be from 0 to 1,000,000"),
        (
            "{tier: basic, rate_limits: {requests_per_minute: 1e3}}",
            "a.rate_limits.requests_per_minute: 1e3 is a number for some readers and text for others",
        ),
        ("{plan: basic, weight: .nan}", "a.weight: .nan is no number"),
        ("{tier: basic, bugdet: 1}", "a.bugdet: is not known; did you mean budget?"),
        ("{tier: [basic]}", "a.tier: must be text; quote it"),
        ("{priority: high}", "a: must say its plan, as `plan:` or, in the common shape, as `tier:`"),
        ("basic", "a: must say its plan, as `plan:` or, in the common shape, as `tier:`"),
        ("", "a: has no value; leave it out"),
    ],
)
def test_what_a_tenant_cannot_be_is_refused_by_line(entry: str, problem: str) -> None:
    directory = Directory().edited(Edit(plans=(BASIC,)), 1.0)
    document = Document.parse(Path("file"), f"tenants:\n  a: {entry}\n")
    plan_import(document, directory)
    problem = f"file:2: tenants.{problem}"
    assert [line[: len(problem)] for line in document.problems] == [problem]


@pytest.mark.parametrize(
    "entry",
    ["{plan: basic, limits: {tokens_per_minute: 7}}", "{tier: basic, rate_limits: {tokens_per_minute: 7}}"],
    ids=["our shape", "the common one"],
)
def test_what_a_file_does_not_name_stays(entry: str) -> None:
    limits = Limits(requests_per_minute=3, tokens_per_minute=7, tokens_per_day=9)
    before = Overrides(
        Limits(requests_per_minute=3, tokens_per_day=9), system_prompt="Be brief.", display_name="A", suspended=True,
        models=("small",), adapters=("a",), default_adapter="a", pool="gold", weight_milli=7, alert_percent=5,
        thresholds=Thresholds(10, 20, 30), service_class=ServiceClass.GOLD,
        loss_policy=LossPolicy.FAIL_OPEN, time_zone="Asia/Tokyo", canary=Canary(1.0, (CanaryStep(10, 60),)),
    )  # fmt: skip
    directory = Directory().edited(Edit(plans=(BASIC,), tenants=(Tenant("a", "basic", before),)), 1.0)
    document = Document.parse(Path("file"), f"tenants: {{a: {entry}}}")
    planned = plan_import(document, directory)
    (tenant,) = planned.edit.tenants
    assert tenant.overrides == replace(before, limits=limits)
    assert planned.updated == ["a"]
    assert plan_import(document, directory.edited(planned.edit, 2.0)).unchanged == ["a"]


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
def test_a_key_expires_in_a_year_that_messages_can_say(moment: str) -> None:
    key = f"key_id: {'a' * 12}\n  tenant: acme\n  hash: '{'0' * 64}'\n  expires_at: {moment}\n"
    document = Document.parse(Path("file"), f"keys:\n- {key}")
    assert check(document, KeysFile) is None
    assert document.problems == ["file:5: keys.0.expires_at: must be from 1970 to 9998"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("-3", -3), ("+5", 5), ("0", 0), ("500_000_000", 500_000_000), ("2.5", 2.5), (".5", 0.5), ("5.", 5.0),
        ("-0.25", -0.25), ("1.5e+3", 1500.0), ("true", True), ("FALSE", False), ("~", None), ("null", None), ("gold", "gold"),
        ('"010"', "010"), ("'no'", "no"), ('"1:30"', "1:30"), ('"2026-01-01"', "2026-01-01"), ("127.0.0.1:7", "127.0.0.1:7"),
        ("1.2.3", "1.2.3"), ("smollm2-1e3", "smollm2-1e3"), ("!!str no", "no"), ("north", "north"),
        ("2030-01-01T00:00:00Z", datetime(2030, 1, 1, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_what_every_reader_of_yaml_agrees_on_is_read(text: str, value: object) -> None:
    document = Document.parse(Path("file"), f"- {text}\n", nulls=True)
    assert (document.data, document.problems) == ([value], [])
    assert type(document.data[0]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "010", "08", "-010", "+010", "00", "0o10", "0x1F", "0b11", "1:30", "190:20:30", "1:30.5", "1_0", "1__000", "1_0000",
        "no", "No", "NO", "yes", "on", "Off", "y", "N", "1e3", "1E3", "1.5e3", "-.5", "1_000.5", ".inf", "-.INF", ".NaN",
        "2026-01-01", "2026-1-1", "2026-01-01 10:00:00", "2026-01-01T10:00:00", "2026-13-01T00:00:00Z", "9" * 19, "9" * 900,
        "01.5", "1" * 400 + ".0",
    ],
)  # fmt: skip
def test_what_readers_of_yaml_disagree_on_is_refused_by_line(text: str) -> None:
    """As a value, in a list and as a name: each is named with its own line, and what to write instead."""
    document = Document.parse(Path("file"), f"# a comment\na: {text}\nb:\n- x\n- {text}\nc:\n  {text}: 1\n")
    lines = [problem.split(": ")[0] for problem in document.problems]
    assert lines == ["file:2", "file:5", "file:7"], document.problems
    assert all("write" in problem or "give" in problem or "must be" in problem for problem in document.problems)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a:\n  no: 1\n", ["file:2: a.no: no is a truth value for some readers; write true or false, or quote it"]),
        ("a:\n  true: 1\n", ["file:2: a.true: true is no text; quote it"]),
        ("a:\n  123: 1\n", ["file:2: a.123: 123 is no text; quote it"]),
        ("a:\n  ~: 1\n", ["file:2: a.~: there is no name before the colon"]),
        ("a:\n  models:\n  x: 1\n", ["file:2: a.models: has no value; leave it out to say nothing of it"]),
        ("a: ~\nb: [1, ]\nc: [~]\n", ["file:1: a: has no value", "file:3: c.0: has no value"]),
        ("a: &x {b: 010}\nc:\n  <<: *x\n", ["file:1: a.b: 010 begins with 0", "file:1: c.b: 010 begins with 0"]),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x\n  b: 2\n  b: 3\n", ["file:5: c.b: is given a second time, on line 6"]),
        ("a: &x\n  <<: *x\n", ["file:2: is not YAML: << must name mappings, and not itself"]),
        ("a:\n  <<: 3\n", ["file:2: is not YAML: << must name mappings, and not itself"]),
        ("a: 'x\u2028y\u0085z'\nb: 010\n", ["file:2: b: 010 begins with 0"]),
        ("a: 1\r\nb: 010\r\n", ["file:2: b: 010 begins with 0"]),
        ("\ufeffa: 1\nb: 010\n", ["file:2: b: 010 begins with 0"]),
        ("a: 1\n--- \nb: 2\n", ["file:2: is not YAML: an anchor"]),
    ],
)
def test_names_nothings_and_merges_are_told_by_their_own_line(text: str, problems: list[str]) -> None:
    found = Document.parse(Path("file"), text).problems
    assert [line[: len(problem)] for line, problem in zip(found, problems, strict=True)] == problems


def test_a_tenants_file_says_all_that_is_wrong_at_once() -> None:
    directory = Directory().edited(Edit(plans=(BASIC,)), 1.0)
    text = """tenants:
  no: {plan: basic}
  acme:
    plan: basics
    limits: {requests_per_minute: 010}
    wieght: 2
  globex:
    tier: basic
    models_allowed:
    budget: {daily_limit_usd: 1:30}
"""
    document = Document.parse(Path("file"), text)
    plan_import(document, directory)
    starts = [
        "file:2: tenants.no: no is a truth value",
        "file:5: tenants.acme.limits.requests_per_minute: 010 begins with 0",
        "file:9: tenants.globex.models_allowed: has no value",
        "file:10: tenants.globex.budget.daily_limit_usd: 1:30 counts in sixties",
        "file:4: tenants.acme.plan: there is no plan 'basics'; did you mean basic?",
        "file:6: tenants.acme.wieght: is not known; did you mean weight?",
    ]
    assert [line[: len(start)] for line, start in zip(document.problems, starts, strict=True)] == starts
