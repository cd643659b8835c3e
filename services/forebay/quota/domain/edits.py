"""What administrators may ask for, decided on what is stored: each function returns the change, or raises why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from forebay.errors import Code, FieldViolation, MeshError
from forebay.policy.model import KeyPolicy, allows
from forebay.quota.domain.audit import changes_between
from forebay.quota.domain.directory import Directory, Edit, Entry, Key, Overrides, Tenant
from forebay.quota.domain.plans import Plan
from forebay.words import instead_of

# Of one tenant, that hold. Those that are over stay listed.
MAX_KEYS = 1_000

V = TypeVar("V")


def create_tenant(directory: Directory, tenant: Tenant) -> Edit:
    """Makes a tenant; ALREADY_EXISTS when the id is or was another's, NOT_FOUND when the plan is not there."""
    if tenant.tenant_id in directory.tenants or tenant.tenant_id in directory.removed:
        message = f"the id {tenant.tenant_id} is another tenant's, or was a deleted one's; choose another"
        raise MeshError(Code.ALREADY_EXISTS, "TENANT_ID_TAKEN", message)
    return _tenant(directory, tenant)


def update_tenant(
    directory: Directory, tenant_id: str, etag: str, plan: str | None, override: Callable[[Overrides], Overrides]
) -> Edit:
    """Changes a tenant: its plan unless that is None, and its overrides."""
    entry = _found(directory.tenants, tenant_id, "tenant", etag)
    before = entry.value
    return _tenant(directory, Tenant(tenant_id, plan or before.plan, override(before.overrides)), before.overrides)


def remove_tenant(directory: Directory, tenant_id: str, etag: str) -> Edit:
    """Removes a tenant and its keys."""
    _found(directory.tenants, tenant_id, "tenant", etag)
    return Edit(removed=(tenant_id,))


def suspend_tenant(directory: Directory, tenant_id: str, suspended: bool) -> Edit:
    """Suspends a tenant, or ends that."""
    tenant = _found(directory.tenants, tenant_id, "tenant").value
    return Edit(tenants=(replace(tenant, overrides=replace(tenant.overrides, suspended=suspended or None)),))


def put_plan(directory: Directory, name: str, etag: str, change: Callable[[Plan | None], Plan]) -> Edit:
    """Makes a plan, or changes it for all who follow it."""
    known = _found(directory.plans, name, "plan", etag).value if name in directory.plans or etag else None
    plan = change(known)
    if plan.nano_usd_per_million_tokens is None:
        for tenant_id in followers(directory, name):
            if directory.tenants[tenant_id].value.overrides.priced_by_plan:
                raise _no_price(name, tenant_id)
    return Edit(plans=(plan,))


def followers(directory: Directory, plan: str) -> list[str]:
    """Returns the ids of a plan's tenants."""
    return [tenant_id for tenant_id, entry in directory.tenants.items() if entry.value.plan == plan]


def check_scope(directory: Directory, key: KeyPolicy) -> None:
    """Refuses a new key for models that its tenant may not use."""
    tenant = _found(directory.tenants, key.tenant_id, "tenant").value
    for model in key.models or ():
        if not allows(tenant.overrides.models, model):
            rule = (
                f"{key.tenant_id} may not use the model {model!r}; {instead_of(model, tenant.overrides.models or ())}"
            )
            raise _wrong_field("MODEL_NOT_ALLOWED", "key.models", rule)


def issue_key(directory: Directory, key: KeyPolicy, now: float) -> Edit:
    """Adds a key."""
    _found(directory.tenants, key.tenant_id, "tenant")
    of_tenant = (
        entry.value.policy for entry in directory.keys.values() if entry.value.policy.tenant_id == key.tenant_id
    )
    if sum(not _is_over(policy, now) for policy in of_tenant) >= MAX_KEYS:
        message = f"{key.tenant_id} has {MAX_KEYS:,} valid keys, as many as it may; revoke one that nobody needs"
        raise MeshError(Code.FAILED_PRECONDITION, "TOO_MANY_KEYS", message)
    return Edit(keys=(Key(key),))


def rotate_key(directory: Directory, key_id: str, new_id: str, new_hash: bytes, now: float, overlap_s: float) -> Edit:
    """Adds a key with the scope of another, which goes on for the overlap at most and then expires."""
    old = _found(directory.keys, key_id, "key").value
    expires_at = old.policy.expires_at
    if old.replaced_by or _is_over(old.policy, now):
        raise MeshError(
            Code.FAILED_PRECONDITION,
            "KEY_IS_OVER",
            f"key {key_id} is revoked, expired or replaced already; issue a new one",
        )
    ends = now + overlap_s if expires_at is None else min(expires_at, now + overlap_s)
    edit = issue_key(directory, replace(old.policy, key_id=new_id, hash=new_hash), now)
    return replace(edit, keys=(*edit.keys, Key(replace(old.policy, expires_at=ends), new_id)))


def revoke_key(directory: Directory, key_id: str) -> Edit:
    """Ends a key."""
    key = _found(directory.keys, key_id, "key").value
    return Edit(keys=(replace(key, policy=replace(key.policy, revoked=True)),))


@dataclass(frozen=True, slots=True)
class Changed:
    """One thing that an edit changes, for the audit log."""

    subject: str
    tenant_id: str
    changes: tuple[str, ...]


def changes_of(directory: Directory, edit: Edit) -> Iterator[Changed]:
    """Yields what an edit of a directory changes."""
    for plan in edit.plans:
        before_plan = _value(directory.plans, plan.name)
        yield Changed(f"plan:{plan.name}", "", changes_between(before_plan, plan))
    for tenant in edit.tenants:
        known = _value(directory.tenants, tenant.tenant_id)
        moved = (f"plan: {known.plan if known else 'unset'} -> {tenant.plan}",)
        overrides = changes_between(known.overrides if known else Overrides(), tenant.overrides)
        same_plan = known is not None and known.plan == tenant.plan
        changes = overrides if same_plan else (*moved, *overrides)
        yield Changed(f"tenant:{tenant.tenant_id}", tenant.tenant_id, changes)
    for key in edit.keys:
        before = _value(directory.keys, key.name)
        changes = changes_between(before.policy if before else None, key.policy)
        yield Changed(f"key:{key.name}", key.policy.tenant_id, changes)
    for tenant_id in edit.removed:
        yield Changed(f"tenant:{tenant_id}", tenant_id, ("removed with its keys",))


def _is_over(key: KeyPolicy, now: float) -> bool:
    return key.revoked or (key.expires_at is not None and key.expires_at <= now)


def _value(entries: Mapping[str, Entry[V]], name: str) -> V | None:
    entry = entries.get(name)
    return entry.value if entry else None


def _tenant(directory: Directory, tenant: Tenant, before: Overrides | None = None) -> Edit:
    own = tenant.overrides
    adapters = (own.default_adapter, own.adapters)
    changed = before is None or adapters != (before.default_adapter, before.adapters)
    if changed and own.default_adapter and own.default_adapter not in (own.adapters or ()):
        there_are = instead_of(own.default_adapter, own.adapters or ())
        rule = f"{own.default_adapter!r} is none of the tenant's adapters; {there_are}"
        raise _wrong_field("NOT_ITS_ADAPTER", "tenant.default_adapter", rule)
    plan = _found(directory.plans, tenant.plan, "plan").value
    if tenant.overrides.priced_by_plan and plan.nano_usd_per_million_tokens is None:
        raise _no_price(plan.name, tenant.tenant_id)
    return Edit(tenants=(tenant,))


def _found(entries: Mapping[str, Entry[V]], name: str, kind: str, etag: str = "") -> Entry[V]:
    entry = entries.get(name)
    if entry is None:
        advice = f"; {instead_of(name, entries)}" if kind == "plan" else ""  # tenants and keys are too many to compare
        raise MeshError(Code.NOT_FOUND, f"{kind.upper()}_NOT_FOUND", f"there is no {kind} {name!r}{advice}")
    if etag and etag != str(entry.version):
        message = f"{kind} {name} has changed since it was read; read it again and repeat the change"
        raise MeshError(Code.ABORTED, "ETAG_MISMATCH", message)
    return entry


def _wrong_field(reason: str, field: str, rule: str) -> MeshError:
    return MeshError(Code.INVALID_ARGUMENT, reason, f"{field}: {rule}", field_violations=[FieldViolation(field, rule)])


def _no_price(plan: str, tenant_id: str) -> MeshError:
    message = (
        f"plan {plan} has no usd_per_1000_tokens, and {tenant_id} is priced by plan; set priced_by_plan to false first"
    )
    return MeshError(Code.FAILED_PRECONDITION, "PLAN_WITHOUT_PRICE", message)
