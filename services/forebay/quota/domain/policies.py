"""All policies at one moment, and the difference between two such moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.quota.domain.plans import Plan

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Policies:
    """Everything the mesh knows of tenants, by id; never changed, only replaced."""

    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    keys: Mapping[str, KeyPolicy] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """What turns one state of the policies into the next; removed tenants' keys are among the removed keys."""

    tenants: tuple[TenantPolicy, ...]
    keys: tuple[KeyPolicy, ...]
    removed_tenants: tuple[str, ...]
    removed_keys: tuple[str, ...]


def difference(old: Policies, new: Policies) -> Change:
    """Returns what changed for tenants and keys."""
    return Change(
        _changed(old.tenants, new.tenants),
        _changed(old.keys, new.keys),
        tuple(old.tenants.keys() - new.tenants.keys()),
        tuple(old.keys.keys() - new.keys.keys()),
    )


def _changed(old: Mapping[str, V], new: Mapping[str, V]) -> tuple[V, ...]:
    return tuple(value for name, value in new.items() if old.get(name) != value)
