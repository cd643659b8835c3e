"""The quota service's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from forebay.config import Address
from forebay.policy.pepper import PepperConfig
from forebay.quota.domain.reservations import Terms
from forebay.quota.policy_files import SHIPPED_PLANS


class QuotaConfig(PepperConfig):
    """Fields of the quota service beside those of every service."""

    service: ClassVar[str] = "quota"

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=r"^(rediss?|unix|redis\+cluster)://",
        description="the Redis or Valkey with the counters; redis+cluster://host:port, of any node, for a cluster",
    )
    tenants_file: Path = Field(description="YAML file of the tenants; watched for changes")
    keys_file: Path = Field(description="YAML file of the hashes of their keys; watched for changes")
    plans_file: Path = Field(SHIPPED_PLANS, description="YAML file of the plans; watched for changes")
    lease_seconds: float = Field(
        30.0, ge=1, le=600, description="how long a reservation holds unless its router renews it"
    )
    provisional_seconds: float = Field(
        3_600.0,
        ge=1,
        le=3_600,
        description="how long one that no longer holds waits for its usage, then charged nothing",
    )
    metering_address: Address | None = Field(
        None, description="host:port of metering, whose ledger tells what was used where a router did not settle"
    )

    replicas: int = Field(1, ge=1, le=1_000, description="how many processes of quota share the counters")
    journal_file: Path | None = Field(
        None,
        description="file of what was admitted while the counters were away, for tenants that fail open; without it nobody does",
    )
    fail_open_seconds: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="for how long tenants that fail open are admitted while the counters are away",
    )

    def terms(self) -> Terms:
        """Returns how long reservations last."""
        return Terms(lease_ms=round(self.lease_seconds * 1000), provisional_ms=round(self.provisional_seconds * 1000))
