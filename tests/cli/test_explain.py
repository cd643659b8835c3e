"""Errors and figures as people read them."""

from __future__ import annotations

import pytest

from forebay.cli.explain import explain
from forebay.cli.figures import duration, limits, masked, usd
from forebay.errors import Code, FieldViolation, MeshError, QuotaViolation
from forebay.policy.model import Limits


def test_a_spent_limit_says_which_and_when() -> None:
    error = MeshError(
        Code.RESOURCE_EXHAUSTED, "TOKENS_PER_MINUTE", "no tokens are left.", retry_after=12.0,
        quota_violations=[QuotaViolation("tenant:acme", "tokens_per_minute", 100, 90, 20)],
    )  # fmt: skip
    assert explain(error).splitlines() == [
        "no tokens are left (TOKENS_PER_MINUTE)",
        "  tenant acme may use 100 tokens a minute; 90 are used or held, and 20 more are asked for",
        "Try again in 12.0 s.",
    ]


def test_bad_fields_are_named() -> None:
    error = MeshError(
        Code.INVALID_ARGUMENT, "BAD_REQUEST", "the request is wrong",
        field_violations=[FieldViolation("sampling.temperature", "must be 0 to 2")],
    )  # fmt: skip
    assert "  sampling.temperature: must be 0 to 2" in explain(error).splitlines()


def test_what_the_message_says_is_not_said_again() -> None:
    error = MeshError(
        Code.INVALID_ARGUMENT, "INVALID_REQUEST", "etag must be set", field_violations=[FieldViolation("etag", "must be set")]
    )  # fmt: skip
    assert explain(error) == "etag must be set (INVALID_REQUEST)"


def test_a_mesh_that_is_not_there_is_not_a_status_code() -> None:
    said = explain(MeshError(Code.UNAVAILABLE, "GRPC_UNAVAILABLE", "failed to connect to all addresses; ..."))
    assert said.startswith("nothing answers at that address")
    assert "forebay up" in said
    said = explain(
        MeshError(Code.UNAVAILABLE, "NO_ROUTER", "no router answers at 10.0.0.1:1; is the mesh running there?")
    )
    assert said.startswith("no router answers at 10.0.0.1:1")


def test_a_wrong_key_says_where_keys_come_from() -> None:
    assert "--tenant" in explain(MeshError(Code.UNAUTHENTICATED, "KEY_UNKNOWN", "the key is not known"))


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (13_500, "$0.0000135"),
        (1_500_000_000, "$1.50"),
        (1_234_000_000_000, "$1,234.00"),
        (-20, "-$0.00000002"),
    ],
)
def test_money_keeps_every_digit(nano: int, text: str) -> None:
    assert usd(nano) == text


def test_spans_and_keys_and_limits() -> None:
    assert [duration(value) for value in (None, 0.0124, 3.21)] == ["–", "12 ms", "3.2 s"]
    assert masked("fb_abcdefgh2345_" + "x" * 43) == "fb_abcdefgh2345_…"
    assert limits(Limits()) == "none"
    assert limits(Limits(requests_per_minute=60, daily_budget_nano_usd=10**10)) == "60 req/min, $10.00/day"
    assert limits(Limits(input_tokens_per_minute=7)) == "7 tok/min in"
