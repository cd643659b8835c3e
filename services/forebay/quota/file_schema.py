"""The shape of the files that tenants, plans and keys are read from; everything that a field may be is said here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forebay.policy.model import EVERY_MODEL, Limits, ServiceClass, Thresholds
from forebay.quota.domain.directory import Overrides
from forebay.yaml_files.shape import PATTERNS, Moment

# So that sums stay exact in the scripts' floating-point numbers.
MAX_COUNT = 10**12
# A tenant is to stay far smaller than a message of policies.
MAX_SYSTEM_PROMPT_BYTES = 8_192

# The year 9999, in which protobuf's times end.
END_OF_TIME = 253_370_764_800.0

TENANT_ID = r"^[a-z0-9-]{1,63}$"
KEY_ID = r"^[a-z2-7]{12}$"
PATTERNS[TENANT_ID] = "must be 1 to 63 of a-z, 0-9 and -"
PATTERNS[KEY_ID] = "must be 12 of a-z and 2-7"


def _scaled(scale: int, most: int, unit: str, least: int = 0) -> BeforeValidator:
    """Returns what reads a number as a whole number of smaller units: at least `least` of them, at most `most` of the larger."""

    def read(value: object) -> int:
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            raise ValueError("must be a number")
        exact = Decimal(str(value)) * scale  # a float's shortest text is the number that was written
        if not least <= exact <= most * scale or exact % 1:
            raise ValueError(f"must be from {Decimal(least) / scale:f} to {most:,}, and a whole number of {unit}")
        return int(exact)

    return BeforeValidator(read)


def _service_class(value: object) -> ServiceClass:
    try:
        return ServiceClass[str(value).upper()]
    except KeyError:
        raise ValueError("must be gold, silver or bronze") from None


def _priority(value: object) -> ServiceClass:
    try:
        return {"high": ServiceClass.GOLD, "medium": ServiceClass.SILVER, "low": ServiceClass.BRONZE}[str(value)]
    except KeyError:
        raise ValueError("must be high, medium or low") from None


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("must be 64 hexadecimal digits in lower case, quoted")
    return bytes.fromhex(value)


def _short_enough(text: str) -> str:
    if len(text.encode()) > MAX_SYSTEM_PROMPT_BYTES:
        raise ValueError(f"must be at most {MAX_SYSTEM_PROMPT_BYTES} bytes long")
    return text


def models_of(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the models that a list allows: all where there is no list, or "*" alone; none where it is empty."""
    return None if names is None or list(names) == [EVERY_MODEL] else tuple(names)


def _one_star(names: list[str]) -> list[str]:
    if EVERY_MODEL in names and len(names) > 1:
        raise ValueError(f'"{EVERY_MODEL}" must stand alone: it allows every model')
    return names


def _sayable(moment: datetime) -> datetime:
    if not 0 <= moment.timestamp() < END_OF_TIME:
        raise ValueError("must be from 1970 to 9998")
    return moment


Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Percent = Annotated[int, Field(ge=1, le=100)]
Threshold = Annotated[int, Field(ge=1, le=1_000)]
Milli = Annotated[int, _scaled(1000, 1000, "thousandths", least=1)]
NanoUsd = Annotated[int, _scaled(10**9, 10**6, "nano-USD")]
NanoUsdPerMillion = Annotated[int, _scaled(10**12, 1000, "nano-USD per million")]
Class = Annotated[ServiceClass, BeforeValidator(_service_class)]
Hash = Annotated[bytes, BeforeValidator(_hash)]
Name = Annotated[str, Field(max_length=200)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
# Absent for every model, and empty for none.
Models = Annotated[list[ModelName], Field(max_length=256), AfterValidator(_one_star)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LimitsEntry(_Entry):
    """Limits by name; one that is absent is the plan's, or does not exist."""

    requests_per_second: Count | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    tokens_per_day: Count | None = None
    daily_budget_usd: NanoUsd | None = None
    monthly_budget_usd: NanoUsd | None = None

    def values(self) -> dict[str, int]:
        """Returns those that are given, by the names of `Limits`."""
        return {name.replace("_usd", "_nano_usd"): value for name, value in self.model_dump(exclude_none=True).items()}


class PlanLimitsEntry(LimitsEntry):
    """A plan's limits; its concurrency is always bounded, and with it what a tenant's reservations can take up."""

    concurrent_requests: Count

    def limits(self) -> Limits:
        """Returns them as limits."""
        return Limits(**self.values())


class PlanEntry(_Entry):
    """One plan."""

    service_class: Class
    weight: Milli
    limits: PlanLimitsEntry
    usd_per_1000_tokens: NanoUsdPerMillion | None = None
    alert_percent: Percent = 90


class PlansFile(_Entry):
    """plans.yaml."""

    plans: dict[Annotated[str, Field(pattern=TENANT_ID)], PlanEntry]


class ThresholdsEntry(_Entry):
    """Shares of each limit at which a tenant is warned, slowed down and refused."""

    warn_percent: Threshold = 80
    throttle_percent: Threshold = 100
    hard_percent: Threshold = 100

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if not self.warn_percent <= self.throttle_percent <= self.hard_percent:
            raise ValueError("must rise from warn over throttle to hard")
        return self

    def thresholds(self, before: Thresholds | None = None) -> Thresholds:
        """Returns them as thresholds; those that are not named stay."""
        return replace(before or Thresholds(), **self.model_dump(exclude_unset=True))


class TenantEntry(_Entry):
    """One tenant: its plan, and what differs from it."""

    plan: str
    limits: LimitsEntry = LimitsEntry()
    display_name: Name | None = None
    service_class: Class | None = None
    weight: Milli | None = None
    models: Models | None = None
    adapters: Annotated[list[ModelName], Field(max_length=256)] | None = None
    default_adapter: ModelName | None = None
    pool: Annotated[str, Field(pattern=TENANT_ID)] | None = None
    system_prompt: Annotated[str, AfterValidator(_short_enough)] | None = None
    suspended: bool | None = None
    thresholds: ThresholdsEntry | None = None
    alert_percent: Percent | None = None
    priced_by_plan: bool | None = None

    def fields(self) -> dict[str, Any]:
        """Returns what differs from the plan besides limits, by the names of `TenantPolicy`."""
        given = self.model_dump(exclude={"plan", "limits", "thresholds"}, exclude_none=True)
        if "weight" in given:
            given["weight_milli"] = given.pop("weight")
        if "models" in given:
            given["models"] = models_of(given["models"])
        if "adapters" in given:
            given["adapters"] = tuple(given["adapters"])
        if self.thresholds is not None:
            given["thresholds"] = self.thresholds.thresholds()
        return given

    def overrides(self, before: Overrides) -> Overrides:
        """Returns all that differs from the plan then: what the file does not name stays."""
        said = self.fields()
        if self.thresholds is not None:
            said["thresholds"] = self.thresholds.thresholds(before.thresholds)
        return replace(before, limits=replace(before.limits, **self.limits.values()), **said)


class TenantsFile(_Entry):
    """tenants.yaml."""

    tenants: dict[Annotated[str, Field(pattern=TENANT_ID)], TenantEntry]


class CommonRateLimits(_Entry):
    """Rate limits as the common shape names them."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None


class CommonBudget(_Entry):
    """Budgets as the common shape names them."""

    daily_limit_usd: NanoUsd | None = None
    monthly_limit_usd: NanoUsd | None = None
    alert_threshold_percent: Percent | None = None


class CommonTenantEntry(_Entry):
    """One tenant in the shape that is common elsewhere: `tier` is the plan, `priority` the class."""

    tier: str
    name: Name | None = None
    models_allowed: Models | None = None
    rate_limits: CommonRateLimits = CommonRateLimits()
    budget: CommonBudget = CommonBudget()
    priority: Annotated[ServiceClass, BeforeValidator(_priority)] | None = None

    @property
    def plan(self) -> str:
        """The plan."""
        return self.tier

    @property
    def models(self) -> list[str] | None:
        """The models that it may use."""
        return self.models_allowed

    def overrides(self, before: Overrides) -> Overrides:
        """Returns what differs from the plan then: what the file does not name stays."""
        limits = self.rate_limits.model_dump(exclude_none=True)
        budgets = (("daily_budget_nano_usd", "daily_limit_usd"), ("monthly_budget_nano_usd", "monthly_limit_usd"))
        limits |= {limit: getattr(self.budget, name) for limit, name in budgets if name in self.budget.model_fields_set}
        own = {
            "display_name": self.name,
            "service_class": self.priority,
            "alert_percent": self.budget.alert_threshold_percent,
        }
        said: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        if self.models_allowed is not None:
            said["models"] = models_of(self.models_allowed)
        return replace(before, limits=replace(before.limits, **limits), **said)


class KeyEntry(_Entry):
    """One key, known by its hash alone."""

    key_id: Annotated[str, Field(pattern=KEY_ID)]
    tenant: str
    hash: Hash
    expires_at: Annotated[Moment, AfterValidator(_sayable)] | None = None
    models: Models | None = None
    display_name: Name = ""


class KeysFile(_Entry):
    """keys.yaml."""

    keys: list[KeyEntry]
