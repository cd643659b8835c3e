"""Policies as values; the fields are those of quota's contract, which says what each means."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class ServiceClass(enum.Enum):
    """The class of service; the numbers are the contract's."""

    GOLD = 1
    SILVER = 2
    BRONZE = 3


class LossPolicy(enum.Enum):
    """What admission does while the counters, or quota itself, cannot be reached; the numbers are the contract's."""

    FAIL_CLOSED = 1
    FAIL_OPEN = 2


# Stands alone in a list of models, where people and peers write every model.
EVERY_MODEL = "*"


def allows(models: tuple[str, ...] | None, model: str) -> bool:
    """Whether a list of models allows one; None allows every model, and an empty list none."""
    return models is None or model in models


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a tenant, a key, or a tenant on one model; None is no limit."""

    requests_per_second: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    daily_budget_nano_usd: int | None = None
    monthly_budget_nano_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of a limit, in percent, at which a tenant is warned, slowed down and refused."""

    warn_percent: int = 80
    throttle_percent: int = 100
    hard_percent: int = 100


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """A share of every limit, in percent, and for how many seconds it holds."""

    percent: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Canary:
    """Limits that rise by steps; `started_at` is in seconds since the epoch."""

    started_at: float
    steps: tuple[CanaryStep, ...]


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """All that the mesh knows of a tenant.

    Attributes:
        models: what it may use; None for every model, empty for none.
    """

    tenant_id: str
    plan: str
    service_class: ServiceClass
    weight_milli: int
    display_name: str = ""
    limits: Limits = Limits()
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    models: tuple[str, ...] | None = None
    adapters: tuple[str, ...] = ()
    default_adapter: str = ""
    pool: str = ""
    system_prompt: str = ""
    suspended: bool = False
    loss_policy: LossPolicy = LossPolicy.FAIL_CLOSED
    thresholds: Thresholds = Thresholds()
    isolation_key: bytes = b""
    time_zone: str = "UTC"
    stop_on_budget: bool = False
    alert_percent: int = 90
    priced_by_plan: bool = False
    canary: Canary | None = None

    def may_use(self, model: str) -> bool:
        """Whether the tenant's policy allows a model."""
        return allows(self.models, model)


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What verifies one virtual key.

    Attributes:
        hash: SHA-256 of pepper and key, 32 bytes; empty where the watcher is not a router.
        expires_at: seconds since the epoch; None for never.
        models: what it may use, of its tenant's models; None for all of those, empty for none.
    """

    key_id: str
    tenant_id: str
    hash: bytes
    expires_at: float | None = None
    revoked: bool = False
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()
    display_name: str = ""

    def may_use(self, model: str) -> bool:
        """Whether the key's scope allows a model."""
        return allows(self.models, model)
