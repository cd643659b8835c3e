"""The shape of the files that tenants, plans and keys are read from; everything that a field may be is said here."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from forebay.policy.model import Limits, ServiceClass

# So that sums stay exact in the scripts' floating-point numbers.
MAX_COUNT = 10**12
# A page of a thousand tenants has to fit into one message.
MAX_SYSTEM_PROMPT_BYTES = 8_192

TENANT_ID = r"^[a-z0-9-]{1,63}$"


def _decimal(value: object) -> object:
    # YAML's numbers are binary; their shortest text is the number that was written.
    return Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _exact(scale: int, name: str) -> AfterValidator:
    def scaled(value: Decimal) -> int:
        if value * scale % 1:
            raise ValueError(f"must be a whole number of {name}")
        return int(value * scale)

    return AfterValidator(scaled)


def _short_enough(text: str) -> str:
    if len(text.encode()) > MAX_SYSTEM_PROMPT_BYTES:
        raise ValueError(f"must be at most {MAX_SYSTEM_PROMPT_BYTES} bytes long")
    return text


Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Percent = Annotated[int, Field(ge=1, le=100)]
Milli = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=Decimal("0.001"), le=1000), _exact(1000, "thousandths")]
NanoUsd = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=1_000_000_000), _exact(10**9, "nano-USD")]
NanoUsdPerMillion = Annotated[
    Decimal, BeforeValidator(_decimal), Field(ge=0, le=1_000_000), _exact(10**12, "nano-USD per million")
]
ClassName = Annotated[Literal["gold", "silver", "bronze"], AfterValidator(lambda name: ServiceClass[name.upper()])]
Name = Annotated[str, Field(max_length=200)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


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

    service_class: ClassName
    weight: Milli
    limits: PlanLimitsEntry
    usd_per_1000_tokens: NanoUsdPerMillion | None = None
    alert_percent: Percent = 90


class PlansFile(_Entry):
    """plans.yaml."""

    plans: dict[Annotated[str, Field(pattern=TENANT_ID)], PlanEntry]


class TenantEntry(_Entry):
    """One tenant: its plan, and what differs from it."""

    plan: str
    limits: LimitsEntry = LimitsEntry()
    display_name: Name | None = None
    service_class: ClassName | None = None
    weight: Milli | None = None
    models: list[ModelName] | None = None
    system_prompt: Annotated[str, AfterValidator(_short_enough)] | None = None
    suspended: bool | None = None
    alert_percent: Percent | None = None
    priced_by_plan: bool | None = None

    def fields(self) -> dict[str, Any]:
        """Returns what differs from the plan besides limits, by the names of `TenantPolicy`."""
        given = self.model_dump(exclude={"plan", "limits"}, exclude_none=True)
        if "weight" in given:
            given["weight_milli"] = given.pop("weight")
        if "models" in given:
            given["models"] = tuple(given["models"])
        return given


class TenantsFile(_Entry):
    """tenants.yaml."""

    tenants: dict[Annotated[str, Field(pattern=TENANT_ID)], TenantEntry]


class KeyEntry(_Entry):
    """One key, known by its hash alone."""

    key_id: Annotated[str, Field(pattern=r"^[a-z2-7]{12}$")]
    tenant: str
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), AfterValidator(bytes.fromhex)]
    expires_at: Annotated[datetime, AwareDatetime] | None = None
    display_name: Name = ""


class KeysFile(_Entry):
    """keys.yaml."""

    keys: list[KeyEntry]
