"""The quota service's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

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
        json_schema_extra={"form": "a URL that begins with redis://, rediss://, unix:// or redis+cluster://"},
    )
    policy_url: str | None = Field(
        None,
        pattern=r"^(sqlite|postgresql(\+psycopg)?)://",
        description="the database of tenants, plans and keys, such as sqlite:////var/lib/forebay/policies.sqlite; "
        "none, and they are what the files say and cannot be administered",
        json_schema_extra={"form": "a URL that begins with sqlite:// or postgresql://"},
    )
    tenants_file: Path | None = Field(
        None, description="YAML file of the tenants; watched for changes, and with a policy_url imported at each"
    )
    keys_file: Path | None = Field(
        None, description="YAML file of the hashes of their keys; with a policy_url, keys that are new in it are added"
    )
    plans_file: Path = Field(
        SHIPPED_PLANS, description="YAML file of the plans; with a policy_url, those that are not in it yet are added"
    )
    lease_seconds: float = Field(
        30.0, ge=1, le=600, description="how long a reservation holds unless its router renews it"
    )
    provisional_seconds: float = Field(
        3_600.0,
        ge=1,
        le=3_600,
        description="how long one that no longer holds waits for its usage, then charged nothing",
    )
    global_requests_per_second: int = Field(
        100,
        ge=0,
        le=1_000_000,
        description="requests in any second over all tenants and quota replicas; 0 for no limit",
    )
    metering_address: Address | None = Field(
        None,
        description="host:port of metering, whose ledger tells what was used where a router did not settle, or the counters "
        "were lost; without it every tenant that they do not have is taken for a lost one, and waits for a minute",
    )

    replicas: int = Field(1, ge=1, le=1_000, description="how many processes of quota share the counters")
    journal_file: Path | None = Field(
        None,
        description="file of what was admitted while the counters were away, for tenants that fail open; without it nobody does; "
        "beside it, what routers may admit while quota is away",
    )
    fail_open_seconds: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="for how long tenants that fail open are admitted while the counters, or quota itself, are away",
    )

    # Peers' sessions never end by themselves, and are opened again at the next life; calls that run are short.
    drain_s: float = Field(
        0.5, ge=0, le=3600, description="how long calls that run may go on after SIGTERM, in seconds"
    )

    @model_validator(mode="after")
    def _policies_are_somewhere(self) -> Self:
        if self.policy_url is None and (self.tenants_file is None or self.keys_file is None):
            raise ValueError("give a policy_url, or both tenants_file and keys_file")
        return self

    def terms(self) -> Terms:
        """Returns how long reservations last."""
        return Terms(lease_ms=round(self.lease_seconds * 1000), provisional_ms=round(self.provisional_seconds * 1000))
