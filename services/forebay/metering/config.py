"""The configuration of a metering replica."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from forebay.config import ConfigError, ServiceConfig
from forebay.metering.price_file import load_prices


class MeteringConfig(ServiceConfig):
    """The fields of metering besides those of all services."""

    service: ClassVar[str] = "metering"

    ledger_path: Path = Field(description="the ledger's SQLite file, on a local disk; made when it is not there")
    prices_file: Path | None = Field(
        None, description="a YAML price table, watched for changes; the shipped one by default"
    )
    max_unacknowledged: int = Field(
        1_000, ge=1, le=10_000, description="events a Record session may have unacknowledged"
    )
    max_waiting: int = Field(
        20_000, ge=1, le=1_000_000, description="events of all sessions that may wait for the ledger"
    )
    provisional_seconds: float = Field(
        60.0, ge=1, le=86_400, description="how long a router's event waits for the worker's before it is recorded"
    )

    # Peers' sessions never end by themselves, and are opened again at the next life; calls that run are short.
    drain_s: float = Field(
        0.5, ge=0, le=3600, description="how long calls that run may go on after SIGTERM, in seconds"
    )

    @field_validator("prices_file")
    @classmethod
    def _usable_prices(cls, file: Path | None) -> Path | None:
        try:
            load_prices(file)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return file
