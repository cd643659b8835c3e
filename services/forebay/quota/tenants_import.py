"""Tenants files, brought into the policy store: our own shape and the common one, told apart tenant by tenant.

A file is taken whole, or not at all with every problem named by line. It changes what it names and nothing else: tenants that it
does not name stay, and so do the fields of a tenant that it does not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from forebay.policy.model import Thresholds
from forebay.quota.domain.directory import Directory, Edit, Overrides, Tenant
from forebay.quota.file_schema import TENANT_ID, CommonTenantEntry, TenantEntry
from forebay.words import instead_of
from forebay.yaml_files.document import Document, Place
from forebay.yaml_files.shape import part_of

_ID = re.compile(TENANT_ID)
_SHAPES: dict[str, type[TenantEntry | CommonTenantEntry]] = {"plan": TenantEntry, "tier": CommonTenantEntry}


@dataclass(frozen=True, slots=True)
class Import:
    """What a file changes: ids of tenants that are new, changed and as they were, and the change itself."""

    created: Sequence[str]
    updated: Sequence[str]
    unchanged: Sequence[str]
    edit: Edit


def plan_import(document: Document, directory: Directory) -> Import:
    """Returns what a tenants file changes; only what it says when the document has no problems afterwards."""
    created: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    put: list[Tenant] = []
    for tenant in _tenants(document, directory):
        known = directory.tenants.get(tenant.tenant_id)
        if known is not None and tenant == known.value:
            unchanged.append(tenant.tenant_id)
        else:
            (created if known is None else updated).append(tenant.tenant_id)
            put.append(tenant)
    return Import(created, updated, unchanged, Edit(tenants=tuple(put)))


def _tenants(document: Document, directory: Directory) -> Iterator[Tenant]:
    data = document.data
    if data is None and document.problems:
        return
    if not isinstance(data, dict) or not isinstance(data.get("tenants"), dict):
        document.report((), "must hold `tenants:` and under it each tenant by its id")
        return
    for name in data.keys() - {"tenants"}:
        document.report((name,), f"is not known; {instead_of(name, ['tenants'])}")
    for tenant_id, values in data["tenants"].items():
        place = ("tenants", tenant_id)
        if not _ID.fullmatch(tenant_id):
            document.report(place, "must be an id of 1 to 63 of a-z, 0-9 and -")
        if tenant_id in directory.removed:
            document.report(place, "was deleted, and its id is not given again")
        tenant = _tenant(document, place, values, directory)
        if tenant is not None:
            yield tenant


def _tenant(document: Document, place: Place, values: object, directory: Directory) -> Tenant | None:
    """Returns a tenant as it is to be; None where that is not clear, which is reported."""
    tenant_id = place[-1]
    if not isinstance(values, Mapping) or not ("plan" in values or "tier" in values):
        document.report(place, "must say its plan, as `plan:` or, in the common shape, as `tier:`")
        return None
    field = "plan" if "plan" in values else "tier"
    named = values[field]
    plan = directory.plans.get(named) if isinstance(named, str) else None
    if isinstance(named, str) and plan is None:
        document.report((*place, field), f"there is no plan {named!r}; {instead_of(named, directory.plans)}")
    entry = part_of(document, values, _SHAPES[field], place)
    if entry is None or plan is None:
        return None
    known = directory.tenants.get(tenant_id)
    overrides = entry.overrides(known.value.overrides if known else Overrides())
    if overrides.priced_by_plan and plan.value.nano_usd_per_million_tokens is None:
        document.report((*place, "priced_by_plan"), f"plan {named} has no usd_per_1000_tokens")
    if overrides.default_adapter and overrides.default_adapter not in (overrides.adapters or ()):
        document.report((*place, "default_adapter"), f"{overrides.default_adapter!r} is none of the tenant's adapters")
    thresholds = overrides.thresholds or Thresholds()
    if not thresholds.warn_percent <= thresholds.throttle_percent <= thresholds.hard_percent:
        document.report(
            (*place, "thresholds"), "must rise from warn over throttle to hard, with what is stored already"
        )
    return Tenant(tenant_id, entry.plan, overrides)
