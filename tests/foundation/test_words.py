"""How messages say names, amounts and spans."""

from __future__ import annotations

import pytest

from forebay.errors import QuotaViolation
from forebay.words import amount, instead_of, limit_value, size, span, subject, usd


@pytest.mark.parametrize(
    ("violation", "sentence"),
    [
        (
            QuotaViolation("tenant:acme", "daily_budget_nano_usd", 300_000, 417_940, 100_000),
            "tenant acme may use $0.0003 a day; $0.00041794 is used or held, and $0.0001 more is asked for",
        ),
        (
            QuotaViolation("tenant:acme/model:small", "tokens_per_minute", 5_000, 4_900, 300),
            "tenant acme on model small may use 5,000 tokens a minute; 4,900 are used or held, and 300 more are asked for",
        ),
        (
            QuotaViolation("key:k1", "concurrent_requests", 2, 1, 1),
            "key k1 may use 2 requests at a time; 1 is used or held, and 1 more is asked for",
        ),
        (
            QuotaViolation("mesh", "global_requests_per_second", 100, 100, 1),
            "all tenants together may use 100 requests a second; 100 are used or held, and 1 more is asked for",
        ),
    ],
)
def test_a_limit_without_room_is_told_in_the_users_units(violation: QuotaViolation, sentence: str) -> None:
    assert violation.sentence() == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.056, "0.1 s"), (0.3, "0.3 s"), (9.95, "10 s"), (12.2, "13 s"), (119, "119 s"), (1_200, "20 min"), (66_066, "19 h"),
     (154_800, "43 h"), (1_000_000, "12 d")],
)  # fmt: skip
def test_a_span_is_rounded_up_to_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_amounts_have_their_units() -> None:
    assert [usd(13_500), usd(-1_500_000_000), amount("tokens_per_day", 12_345)] == ["$0.0000135", "-$1.50", "12,345"]
    assert [limit_value("monthly_budget_nano_usd", 10**10), limit_value("new_limit", 3)] == [
        "$10.00 a month",
        "3 new limit",
    ]
    assert [size(1 << 20), size(256), size(3 << 10), subject("tenant:a")] == ["1 MiB", "256 bytes", "3 KiB", "tenant a"]


def test_a_name_that_is_not_known_says_what_may_be_meant() -> None:
    names = [f"field_{number}" for number in range(20)]
    assert instead_of("wieght", ["weight", "plan"]) == "did you mean weight?"
    assert instead_of("x", ["b", "a"]) == "there are a, b"
    assert instead_of("x", ["a"]) == "there is a"
    assert instead_of("x", []) == "there is none"
    assert instead_of("?", names).endswith("field_15 and 12 more")
    assert len(instead_of("x" * 10**6, names)) < 200
