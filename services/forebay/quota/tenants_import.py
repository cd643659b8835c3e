"""Tenants files, brought into the policy store: our own shape and the common one, told apart tenant by tenant.

A file is taken whole, or not at all with every problem named by line. It says what its tenants are and nothing of others: those
that it does not name stay. So does what it has no word for, such as canary limits or, in the common shape, a system prompt: that
is the administrators' to say. A suspension stays unless the file ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from forebay.field_problems import problems_of
from forebay.quota.domain.directory import Directory, Edit, Overrides, Tenant
from forebay.quota.file_schema import TENANT_ID, CommonTenantEntry, TenantEntry
from forebay.quota.yaml_document import Document, Place

_ID = re.compile(TENANT_ID)


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
    if document.problems:
        return
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("tenants"), dict):
        document.report((), "must hold `tenants:` and under it each tenant by its id")
        return
    for name in data.keys() - {"tenants"}:
        document.report((name,), "is not known")
    for tenant_id, values in data["tenants"].items():
        place = ("tenants", str(tenant_id))
        if tenant_id in directory.removed:
            document.report(place, "was deleted, and its id is not given again")
        if not isinstance(values, Mapping) or not ("plan" in values or "tier" in values):
            document.report(place, "must say its plan, as `plan:` or, in the common shape, as `tier:`")
            continue
        field = "plan" if "plan" in values else "tier"
        named = values[field]
        plan = directory.plans.get(named) if isinstance(named, str) else None
        if isinstance(named, str) and plan is None:
            plans = ", ".join(directory.plans)
            document.report((*place, field), f"there is no plan {named!r}; there are {plans}")
        entry = _entry(document, place, tenant_id, values, TenantEntry if field == "plan" else CommonTenantEntry)
        if entry is None or plan is None:
            continue
        if entry.priced_by_plan and plan.value.nano_usd_per_million_tokens is None:
            document.report((*place, "priced_by_plan"), f"plan {named} has no price")
        known = directory.tenants.get(str(tenant_id))
        yield Tenant(str(tenant_id), entry.plan, entry.overrides(known.value.overrides if known else Overrides()))


def _entry(
    document: Document, place: Place, tenant_id: object, values: object, shape: type[TenantEntry | CommonTenantEntry]
) -> TenantEntry | CommonTenantEntry | None:
    if not isinstance(tenant_id, str) or not _ID.fullmatch(tenant_id):
        document.report(place, "must be an id of 1 to 63 of a-z, 0-9 and -")
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        for inner, problem in problems_of(error):
            document.report((*place, *inner), problem)
        return None
