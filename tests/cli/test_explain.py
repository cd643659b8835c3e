"""Errors and figures as people read them."""

from __future__ import annotations

import pytest

from forebay.cli.explain import explain
from forebay.cli.figures import duration, limits, masked, moment, usd, usd_within
from forebay.client import failures
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
        "Try again in 12 s.",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.056, "1 s"), (1.25, "1.3 s"), (59.5, "60 s"), (61, "61 s"), (3_600.0, "60 min"), (66_066.0, "19 h"), (154_800, "43 h"),
     (10**6, "12 d"), (float("inf"), "–")],
)  # fmt: skip
def test_a_wait_is_never_too_short_and_in_units_of_people(seconds: float, text: str) -> None:
    said = explain(MeshError(Code.RESOURCE_EXHAUSTED, "BUDGET", "no room", retry_after=seconds))
    assert said.splitlines()[-1] == f"Try again in {text}."


def test_a_budget_is_told_in_dollars() -> None:
    violation = QuotaViolation("tenant:acme", "daily_budget_nano_usd", 300_000, 417_940, 1_000)
    said = explain(MeshError(Code.RESOURCE_EXHAUSTED, "BUDGET", "no budget is left", quota_violations=[violation]))
    assert "tenant acme may use $0.0003 a day; $0.00041794 is used or held" in said


def test_a_stream_that_was_cut_says_so_and_where_its_bill_is() -> None:
    said = explain(failures.cut("127.0.0.1:1", "abc", 1_234)).splitlines()
    assert said[0].startswith("the connection to the router at 127.0.0.1:1 broke off after 1,234 tokens of the answer.")
    assert said[1] == "`forebay usage tail --request abc` shows what was billed."
    (line,) = explain(failures.cut("127.0.0.1:1", "", 0)).splitlines()
    assert "broke off before it had answered" in line


@pytest.mark.parametrize(
    ("details", "encrypted", "reason", "advice"),
    [
        ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", True, "TLS_UNTRUSTED", "--ca FILE"),
        ("Hostname Verification Check failed", True, "TLS_WRONG_NAME", "--router"),
        ("Tls handshake failed: WRONG_VERSION_NUMBER", True, "TLS_NOT_SPOKEN", "--insecure"),
        ("Socket closed", False, "TLS_EXPECTED", "--tls"),
        ("errors resolving nowhere.invalid", True, "NO_ROUTER", "forebay up"),
        ("", False, "NO_ROUTER", "forebay up"),
    ],
)
def test_a_router_that_is_not_reached_says_why(details: str, encrypted: bool, reason: str, advice: str) -> None:
    error = failures.unreachable(details, "mesh:1", encrypted)
    assert (error.reason, error.code) == (reason, Code.UNAVAILABLE)
    said = explain(error)
    assert "mesh:1" in said
    assert advice in said
    assert "tls=" not in said


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


@pytest.mark.parametrize(
    ("nano", "width", "text"),
    [
        (1_234, 12, "$0.000001234"),
        (1_234, 8, "$0.00000"),
        (1_234_567_890_123, 12, "$1,234.56789"),
        (999_999_999, 6, "$1.000"),
        (-1_234_567, 8, "-$0.0012"),
        (10**18, 4, "$1,000,000,000.00"),
    ],
)
def test_money_that_has_no_room_is_rounded(nano: int, width: int, text: str) -> None:
    assert usd_within(nano, width) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (3_599.9, "1 h"),
     (66_066, "18 h 21 min"), (86_400, "1 d"), (-1.5, "-1.5 s"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_spans_are_in_units_of_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_moments_have_their_date() -> None:
    assert moment(1_700_000_000) == "2023-11-14 22:13:20"
    assert moment(1_700_000_000, year=False) == "11-14 22:13:20"
    assert moment(1e300) == "–"


def test_spans_and_keys_and_limits() -> None:
    assert [duration(value) for value in (None, 0.0124, 3.21)] == ["–", "12 ms", "3.2 s"]
    assert masked("fb_abcdefgh2345_" + "x" * 43) == "fb_abcdefgh2345_…"
    assert limits(Limits()) == "none"
    assert limits(Limits(requests_per_minute=60, daily_budget_nano_usd=10**10)) == "60 req/min, $10.00/day"
    assert limits(Limits(input_tokens_per_minute=7)) == "7 tok/min in"
