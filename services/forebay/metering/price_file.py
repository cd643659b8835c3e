"""The price table in a YAML file: read whole or not at all, and watched for changes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from forebay.clock import Clock
from forebay.config import ConfigError
from forebay.metering.domain.prices import Item, Price, PriceTable, problems
from forebay.metering.price_book import PriceBook
from forebay.telemetry.logs import get_logger
from forebay.yaml_files.document import Document
from forebay.yaml_files.shape import Moment, check

POLL_S = 2.0
MAX_PROBLEMS = 50

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = get_logger("prices")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    subject: StrictStr
    model: Annotated[StrictStr, Field(min_length=1)] = ""  # left out, and not empty, for all models
    effective_from: Moment = _EPOCH
    nano_usd_per_million: dict[Item, StrictInt] = Field(min_length=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prices: list[_Entry]


def load_prices(file: Path | None) -> PriceTable:
    """Reads a price file; None reads the prices that ship with the package.

    Raises:
        ConfigError: it cannot be read or is no table; the message names every problem.
    """
    if file is not None:
        document = Document.read(file)
    else:
        shipped = resources.files("forebay.metering").joinpath("prices.yaml")
        document = Document.parse(Path("prices.yaml"), shipped.read_text(encoding="utf-8"))
    table = check(document, _File)
    prices: list[Price] = []
    places: list[tuple[str | int, ...]] = []
    for number, entry in enumerate(table.prices if table else ()):
        for item, price in entry.nano_usd_per_million.items():
            prices.append(Price(entry.subject, item, price, _ns(entry.effective_from), entry.model))
            places.append(("prices", number, "nano_usd_per_million", item.value))
    if table is not None:
        for which, problem in problems(prices):
            document.report(() if which is None else places[which], problem)
    if document.problems:
        raise _refuse(document)
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


def _refuse(document: Document) -> ConfigError:
    found = document.problems
    return ConfigError("\n  ".join([f"{len(found)} problem(s) in the prices:", *found[:MAX_PROBLEMS]]))


def _ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1) * 1_000


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
