"""Price files: read whole or not at all, watched, and what ships with the package."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.metering.domain.charge import billed, charge
from forebay.metering.domain.prices import Item
from forebay.metering.price_book import Edition, PriceBook
from forebay.metering.price_file import POLL_S, load_prices, watch_prices
from forebay.testing.clock import FakeClock

from .samples import usage_event

COMPLETE = """
prices:
  - subject: default
    nano_usd_per_million: {{prompt_tokens: 1, cached_tokens: 1, completion_tokens: {price}, gpu_seconds: 0, requests: 0}}
"""


@pytest.mark.parametrize(
    ("plan", "nano_usd_per_token"), [("basic", 2_000), ("standard", 1_500), ("premium", 1_000), ("enterprise", 800)]
)
def test_shipped_plans_cost_what_is_promised(plan: str, nano_usd_per_token: int) -> None:
    event = usage_event(plan=plan, priced_by_plan=True, prompt_tokens=1_000, cached_tokens=300, completion_to=500)
    lines = charge(event, billed({1: event})[1], load_prices(None))
    assert sum(line.amount_nano_usd for line in lines) == 1_500 * nano_usd_per_token


def test_a_shipped_model_has_its_own_price() -> None:
    table = load_prices(None)
    for model in ("smollm2", "simulated"):
        assert table.price(usage_event(model=model), Item.PROMPT_TOKENS).subject == f"model:{model}"
    assert table.price(usage_event(model="other"), Item.PROMPT_TOKENS).subject == "default"
    assert table.price(usage_event(), Item.GPU_SECONDS).nano_usd_per_million == 0


def test_dates_take_effect_to_the_microsecond(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    later = "  - subject: default\n    effective_from: 2026-01-01T00:00:00.000001Z\n    nano_usd_per_million: {requests: 9}\n"
    file.write_text(COMPLETE.format(price=1) + later)
    (price,) = [p for p in load_prices(file).prices if p.effective_from_ns]
    assert price.effective_from_ns == 1_767_225_600_000_001_000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prices: [", ["is not YAML"]),
        ("prices: 2026-13-45", ["prices.yaml:1: prices: 2026-13-45 is a date for some readers"]),
        pytest.param("prices: " + "[" * 1_000, ["is not YAML"], id="deep"),
        ("", ["prices.yaml:1: must hold fields"]),
        ("prices: []", ["default has no price for requests", "default has no price for gpu_seconds"]),
        (
            "prices:\n"
            "  - {subject: default, nano_usd_per_million: {prompt_tokens: 0.5, sunshine: 1}}\n"
            "  - {subject: plan:basic, effective_from: 2026-01-01, price: 3}\n",
            [
                ":2: prices.0.nano_usd_per_million.prompt_tokens: must be a whole number",
                "sunshine",
                ":3: prices.1.nano_usd_per_million: is missing",
                ":3: prices.1.price: is not known",
                ":3: prices.1.effective_from: 2026-01-01 is a date for some readers",
            ],
        ),
    ],
)
def test_every_problem_is_named(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(file)
    for part in [str(file), *named]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (
            "{subject: default, model: '', nano_usd_per_million: {requests: 1}}",
            [":2: prices.0.model: must not be empty"],
        ),
        (
            "{subject: default, nano_usd_per_million: {requests: 010}}",
            [":2: prices.0.nano_usd_per_million.requests: 010"],
        ),
        (
            "{subject: no, nano_usd_per_million: {requests: 1:30}}",
            [":2: prices.0.subject: no is", "1:30 counts in sixties"],
        ),
        (
            "{subject: default, effective_from: 20270101, nano_usd_per_million: {requests: 1}}",
            [":2: prices.0.effective_from: must be a date and time with its zone"],
        ),
        (
            "{subject: default, subject: default, nano_usd_per_million: {requests: 1}}",
            ["subject: is given a second time"],
        ),
    ],
)
def test_what_readers_of_yaml_disagree_on_is_refused(tmp_path: Path, entry: str, named: list[str]) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(f"prices:\n- {entry}\n")
    with pytest.raises(ConfigError) as caught:
        load_prices(file)
    for part in named:
        assert part in str(caught.value)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prices(tmp_path / "none.yaml")


async def test_a_changed_file_takes_effect_and_a_broken_one_does_not(tmp_path: Path, clock: FakeClock) -> None:
    file = tmp_path / "prices.yaml"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, file)

    write(COMPLETE.format(price=1))
    book = PriceBook(load_prices(file), version=1)
    editions = book.editions()
    assert (await anext(editions)).version == 1
    watching = asyncio.create_task(watch_prices(file, book, clock))

    async def next_edition() -> Edition:
        coming = asyncio.ensure_future(anext(editions))
        async with asyncio.timeout(60):
            while not coming.done():
                clock.advance(POLL_S)
                await asyncio.sleep(0)
        return await coming

    write("prices: []")
    for _ in range(3):
        clock.advance(POLL_S)
        await asyncio.sleep(0)
    write(COMPLETE.format(price=7))
    edition = await next_edition()
    assert edition.version > 1
    assert edition.table.price(usage_event(), Item.COMPLETION_TOKENS).nano_usd_per_million == 7
    watching.cancel()
