"""Everything that is administered, as it is stored: plans, tenants with what they override, and keys.

What the mesh is sent follows from it: a tenant's policy is its plan with its overrides, made anew after each change, so that a
changed plan reaches its tenants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from forebay.policy.model import Canary, KeyPolicy, Limits, LossPolicy, ServiceClass, TenantPolicy, Thresholds
from forebay.quota.domain.plans import Plan
from forebay.quota.domain.policies import Policies

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Overrides:
    """A tenant's own values, by the names of `TenantPolicy`; None, and a limit of None, follow the plan.

    Every plan leaves its tenants all models and no adapter. So `models` of None allows every model, and an empty list none.
    """

    limits: Limits = field(default_factory=Limits)
    display_name: str | None = None
    service_class: ServiceClass | None = None
    weight_milli: int | None = None
    model_limits: Mapping[str, Limits] | None = None
    models: tuple[str, ...] | None = None
    adapters: tuple[str, ...] | None = None
    default_adapter: str | None = None
    pool: str | None = None
    system_prompt: str | None = None
    suspended: bool | None = None
    loss_policy: LossPolicy | None = None
    thresholds: Thresholds | None = None
    time_zone: str | None = None
    stop_on_budget: bool | None = None
    alert_percent: int | None = None
    priced_by_plan: bool | None = None
    canary: Canary | None = None

    def paths(self) -> list[str]:
        """Returns the names of what is overridden, such as limits.tokens_per_minute."""
        limits = [f"limits.{limit.name}" for limit in fields(Limits) if getattr(self.limits, limit.name) is not None]
        return sorted([*limits, *self.given()])

    def policy(self, tenant_id: str, plan: Plan, pepper: bytes) -> TenantPolicy:
        """Returns what holds for the tenant."""
        limits = {limit.name: getattr(self.limits, limit.name) for limit in fields(Limits)}
        given = {name: value for name, value in limits.items() if value is not None}
        return plan.tenant(tenant_id, given, self.given(), pepper)

    def given(self) -> dict[str, object]:
        """Returns what is overridden besides limits, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "limits"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it is administered."""

    tenant_id: str
    plan: str
    overrides: Overrides = Overrides()

    @property
    def name(self) -> str:
        """What it is known by."""
        return self.tenant_id


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the id of the one that took its place."""

    policy: KeyPolicy
    replaced_by: str = ""

    @property
    def name(self) -> str:
        """What it is known by."""
        return self.policy.key_id


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """Something stored.

    Attributes:
        value: what.
        version: the directory's when it was last changed.
        created_at: seconds since the epoch.
        updated_at: seconds since the epoch.
    """

    value: V
    version: int
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Edit:
    """One change: what is put in place of what was there, and the tenants that go, with their keys."""

    plans: tuple[Plan, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[Key, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plans or self.tenants or self.keys or self.removed)


@dataclass(frozen=True, slots=True)
class Directory:
    """All of it at one version; never changed, only replaced.

    Attributes:
        version: how many changes there have been.
        removed: ids of tenants that were, and that are not given again.
    """

    version: int = 0
    plans: Mapping[str, Entry[Plan]] = field(default_factory=dict)
    tenants: Mapping[str, Entry[Tenant]] = field(default_factory=dict)
    keys: Mapping[str, Entry[Key]] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def edited(self, edit: Edit, now: float) -> Directory:
        """Returns the next version."""
        version = self.version + 1
        gone = set(edit.removed)
        tenants = _put(self.tenants, edit.tenants, version, now)
        keys = _put(self.keys, edit.keys, version, now)
        return Directory(
            version,
            _put(self.plans, edit.plans, version, now),
            {name: entry for name, entry in tenants.items() if name not in gone},
            {name: entry for name, entry in keys.items() if entry.value.policy.tenant_id not in gone},
            self.removed | gone,
        )

    def policy(self, tenant_id: str, pepper: bytes) -> TenantPolicy:
        """Returns what holds for a tenant."""
        tenant = self.tenants[tenant_id].value
        return tenant.overrides.policy(tenant_id, self.plans[tenant.plan].value, pepper)

    def policies(self, pepper: bytes) -> Policies:
        """Returns what the mesh is told."""
        return Policies(
            {tenant_id: self.policy(tenant_id, pepper) for tenant_id in self.tenants},
            {key_id: entry.value.policy for key_id, entry in self.keys.items()},
            {name: entry.value for name, entry in self.plans.items()},
        )


def _put(before: Mapping[str, Entry[V]], values: Iterable[V], version: int, now: float) -> Mapping[str, Entry[V]]:
    after = dict(before)
    for value in values:
        name: str = value.name  # type: ignore[attr-defined]
        known = before.get(name)
        after[name] = Entry(value, version, known.created_at if known else now, now)
    return after
