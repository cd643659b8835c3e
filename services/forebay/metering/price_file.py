"""The price table in a YAML file: read whole or not at all, and watched for changes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, ValidationError

from forebay.clock import Clock
from forebay.config import NOT_YAML, ConfigError, not_yaml
from forebay.field_problems import problems_of
from forebay.metering.domain.prices import Item, Price, PriceTable, problems
from forebay.metering.price_book import PriceBook
from forebay.telemetry.logs import get_logger

POLL_S = 2.0
MAX_PROBLEMS = 50

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = get_logger("prices")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    subject: str
    model: str = ""
    effective_from: AwareDatetime = _EPOCH
    nano_usd_per_million: dict[Item, StrictInt] = Field(min_length=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prices: list[_Entry]


def load_prices(file: Path | None) -> PriceTable:
    """Reads a price file; None reads the prices that ship with the package.

    Raises:
        ConfigError: it cannot be read or is no table; the message names every problem.
    """
    source = file or resources.files("forebay.metering").joinpath("prices.yaml")
    try:
        entries = _File.model_validate(yaml.safe_load(source.read_text(encoding="utf-8"))).prices
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        found = [f"{'.'.join(map(str, place)) or '(whole)'}: {problem}" for place, problem in problems_of(error)]
        raise _refuse(source, found) from None
    except NOT_YAML as error:
        raise ConfigError(not_yaml(source, error)) from None
    prices = [
        Price(entry.subject, item, price, _ns(entry.effective_from), entry.model)
        for entry in entries
        for item, price in entry.nano_usd_per_million.items()
    ]
    if found := list(problems(prices)):
        raise _refuse(source, found)
    return PriceTable(prices)


async def watch_prices(file: Path, book: PriceBook, clock: Clock) -> None:
    """Puts the file's table in force whenever the file changes, for ever; a file with problems changes nothing but the log."""
    seen = None  # the first look reads it again: it may have changed since it was loaded
    while True:
        await clock.sleep(POLL_S)
        stamp = _stamp(file)
        if stamp == seen:
            continue
        seen = stamp
        try:
            table = await asyncio.to_thread(load_prices, file)
        except ConfigError as error:
            log.error("prices not changed", problems=str(error))
            continue
        if table.prices != book.current.table.prices:
            book.replace(table, int(clock.now() * 1e6))
            log.info("prices changed", version=book.current.version, prices=len(table.prices))


def _refuse(source: object, found: list[str]) -> ConfigError:
    shown = found[:MAX_PROBLEMS]
    return ConfigError("\n  ".join([f"{source}: {len(found)} problem(s) in the prices:", *shown]))


def _ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1_000


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
