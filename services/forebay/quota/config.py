"""The quota service's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator

from forebay.config import ServiceConfig, host_and_port
from forebay.quota.domain.reservations import Terms
from forebay.quota.policy_files import SHIPPED_PLANS

MIN_PEPPER_BYTES = 16


class QuotaConfig(ServiceConfig):
    """Fields of the quota service beside those of every service."""

    service: ClassVar[str] = "quota"

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", pattern=r"^(rediss?|unix)://", description="the Redis or Valkey with the counters"
    )
    tenants_file: Path = Field(description="YAML file of the tenants; watched for changes")
    keys_file: Path = Field(description="YAML file of the hashes of their keys; watched for changes")
    plans_file: Path = Field(SHIPPED_PLANS, description="YAML file of the plans; watched for changes")
    pepper: SecretStr | None = Field(
        None, description="secret that goes into the hash of every key, the same for routers; or name a pepper_file"
    )
    pepper_file: FilePath | None = Field(
        None, description="file with the pepper; white space around it does not belong to it"
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
    metering_address: str | None = Field(
        None, description="host:port of metering, whose ledger tells what was used where a router did not settle"
    )

    @field_validator("metering_address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return value if value is None else host_and_port(value)

    @model_validator(mode="after")
    def _one_pepper(self) -> Self:
        if (self.pepper is None) == (self.pepper_file is None):
            raise ValueError("give either pepper or pepper_file")
        if len(self.pepper_bytes()) < MIN_PEPPER_BYTES:
            raise ValueError(f"the pepper must be at least {MIN_PEPPER_BYTES} bytes long")
        return self

    def pepper_bytes(self) -> bytes:
        """Returns the pepper."""
        if self.pepper is not None:
            return self.pepper.get_secret_value().encode()
        assert self.pepper_file is not None
        return self.pepper_file.read_bytes().strip()

    def terms(self) -> Terms:
        """Returns how long reservations last."""
        return Terms(lease_ms=round(self.lease_seconds * 1000), provisional_ms=round(self.provisional_seconds * 1000))
