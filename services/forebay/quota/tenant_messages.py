"""TenantService's messages to and from values, with every bound on what an administrator may ask."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any
from zoneinfo import available_timezones

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.policy.messages import from_pb_limits, from_pb_models, from_pb_tenant, to_pb_key, to_pb_tenant
from forebay.policy.model import EVERY_MODEL, KeyPolicy, Limits, ServiceClass, TenantPolicy
from forebay.quota.administration import Call
from forebay.quota.domain.audit import AuditEvent
from forebay.quota.domain.directory import Directory, Overrides, Tenant
from forebay.quota.domain.plans import Plan
from forebay.quota.file_schema import END_OF_TIME, MAX_COUNT, MAX_SYSTEM_PROMPT_BYTES
from forebay.quota.messages import require, to_pb_plan
from forebay.words import amount, instead_of

MAX_NAME = 200
MAX_MODELS = 256
MAX_MODEL_LIMITS = 64
MAX_STEPS = 32
MAX_REASON = 256
MAX_FILE_BYTES = 8 << 20
DEFAULT_OVERLAP_S = 86_400
MAX_OVERLAP_S = 30 * 86_400
# A step of a canary schedule; longer ones are somebody's slip of the keyboard.
MAX_STEP_S = 366 * 86_400
MAX_BUDGET_NANO_USD = 10**15
MAX_PERCENT = 1_000

Check = tuple[object, str, str]

_ID = re.compile("[a-z0-9-]{1,63}")
_KEY_ID = re.compile("[a-z2-7]{12}")
_REQUEST_ID = re.compile("[0-9a-f]{32}")
_SUBJECT = re.compile("tenants|(tenant|plan):[a-z0-9-]{1,63}|key:[a-z2-7]{12}")
_PLAN_RULE = "must be the name of a plan, 1 to 63 of a-z, 0-9 and -"
_CLASS_RULE = "must be GOLD, SILVER or BRONZE"
_WEIGHT_RULE = "must be from 1 to 1,000,000 thousandths, a weight of 0.001 to 1,000"
_PERCENT_RULE = "must be from 1 to 100"
_LIMITS = frozenset(limit.name for limit in fields(Limits))
# Fields of the contract that hold the value of another name.
_VALUES = {"model_scope": "models"}
_PATHS = {field.name for field in fields(Overrides)} | {f"limits.{limit}" for limit in _LIMITS} | {"plan", *_VALUES}
_PLAN_PATHS = {field.name for field in fields(Plan)} - {"name"} | {f"limits.{limit}" for limit in _LIMITS}


def to_call(request: Any, role: str, name: str, tenant_id: str = "", subject: str = "") -> Call:
    """Returns a request as a call; what is not well formed in it is left out, for the log must hold refused ones too."""
    known = tenant_id if _ID.fullmatch(tenant_id) else ""
    about = subject if _SUBJECT.fullmatch(subject) else ""  # not a whole key, where somebody gives that for its id
    action = type(request).__name__.removesuffix("Request")
    digest = hashlib.sha256(action.encode() + request.SerializeToString(deterministic=True)).hexdigest()
    request_id = request.request_id if _REQUEST_ID.fullmatch(request.request_id) else ""
    return Call(role, name[:64], action, request_id, digest, known, about, getattr(request, "reason", "")[:MAX_REASON])


def check_change(request: Any) -> None:
    """Checks what all changes have in common."""
    require(
        (_REQUEST_ID.fullmatch(request.request_id), "request_id", "must be 32 lower-case hexadecimal digits"),
        (len(getattr(request, "reason", "")) <= MAX_REASON, "reason", f"must be at most {MAX_REASON} characters long"),
    )


def from_pb_new_tenant(request: quota_pb2.CreateTenantRequest, now: float) -> Tenant:
    """Returns the tenant that is to be made."""
    message = request.tenant
    require(
        (_ID.fullmatch(message.tenant_id), "tenant.tenant_id", "must be 1 to 63 of a-z, 0-9 and -"),
        (_ID.fullmatch(message.plan), "tenant.plan", _PLAN_RULE),
    )
    overrides = overriding(message, request.overrides.paths, "overrides", now)
    return Tenant(message.tenant_id, message.plan, overrides(Overrides()))


def from_pb_plan(name: str) -> str:
    """Returns the plan that a tenant is to follow."""
    require((_ID.fullmatch(name), "tenant.plan", _PLAN_RULE))
    return name


def overriding(
    message: quota_pb2.TenantPolicy, paths: Sequence[str], mask: str, now: float
) -> Callable[[Overrides], Overrides]:
    """Returns what puts the named fields of a tenant in place of overrides; those that are unset follow the plan again."""
    require(_all_known(paths, _PATHS, mask))
    clear = message.HasField("model_scope") or message.models or "models" not in paths or "model_scope" in paths
    require((clear, "tenant.models", "is empty, which could mean none or every model; name model_scope in the mask"))
    require(*_tenant_checks(message))
    policy = from_pb_tenant(message)
    if policy.canary:
        if not message.canary.HasField("started_at"):
            policy = replace(policy, canary=replace(policy.canary, started_at=now))
        assert policy.canary is not None
        ends = policy.canary.started_at + sum(step.seconds for step in policy.canary.steps)
        require(
            ("canary" not in paths or now < ends, "tenant.canary.started_at", "is so early that all steps are over")
        )

    def override(before: Overrides) -> Overrides:
        values = _limits_by(before.limits, policy.limits, paths)
        given = {_VALUES.get(field.name, field.name) for field, _ in message.ListFields()}
        own = {name: getattr(policy, name) if name in given else None for name in overridden(paths)}
        return replace(before, limits=values, **own)

    return override


_OWN = {field.name for field in fields(Overrides)} - {"limits"}


def overridden(paths: Sequence[str]) -> set[str]:
    """Returns the names of `Overrides`, but for limits, that a mask names."""
    return {_VALUES.get(path, path) for path in paths} & _OWN


def changing_plan(request: quota_pb2.UpdatePlanRequest) -> Callable[[Plan | None], Plan]:
    """Returns what puts the named fields of a plan in place of those before; a new plan needs class, weight and concurrency."""
    message, paths = request.plan, list(request.update_mask.paths)
    require(
        (_ID.fullmatch(message.name), "plan.name", "must be 1 to 63 of a-z, 0-9 and -"),
        _all_known(paths, _PLAN_PATHS, "update_mask"),
        (message.service_class in quota_pb2.ServiceClass.values(), "plan.service_class", _CLASS_RULE),
        (_within(message, "weight_milli", 1, 10**6), "plan.weight_milli", _WEIGHT_RULE),
        (_within(message, "alert_percent", 1, 100), "plan.alert_percent", _PERCENT_RULE),
        (
            _within(message, "nano_usd_per_million_tokens", 0, 10**15),
            "plan.nano_usd_per_million_tokens",
            "must be from 0 to 10^15 nano-USD, which is $1,000 for 1,000 tokens",
        ),
        *_limit_checks("plan.limits", message.limits),
    )

    def change(before: Plan | None) -> Plan:
        named = paths if before else sorted(_PLAN_PATHS)
        limits = _limits_by(before.limits if before else Limits(), from_pb_limits(message.limits), named)

        def value(name: str, asked: Any) -> Any:
            return asked if before is None or name in named else getattr(before, name)

        service_class = value("service_class", message.service_class and ServiceClass(message.service_class))
        weight_milli = value("weight_milli", message.weight_milli)
        require(
            (service_class, "plan.service_class", "must be set"),
            (weight_milli, "plan.weight_milli", "must be set"),
            (limits.concurrent_requests, "plan.limits.concurrent_requests", "must be set"),
        )
        priced = message.HasField("nano_usd_per_million_tokens")
        price = value("nano_usd_per_million_tokens", message.nano_usd_per_million_tokens if priced else None)
        return Plan(
            message.name,
            service_class,
            weight_milli,
            limits,
            price,
            value("alert_percent", message.alert_percent or 90),
        )

    return change


def from_pb_new_key(message: quota_pb2.KeyPolicy, key_id: str, digest: bytes, now: float) -> KeyPolicy:
    """Returns the key that is to be issued, under an id and a hash."""
    # Read by hand: the library raises on a time that no calendar has, and this one is a stranger's.
    expires_at = message.expires_at.seconds + message.expires_at.nanos / 1e9 if message.HasField("expires_at") else None
    require(
        (_ID.fullmatch(message.tenant_id), "key.tenant_id", "must be 1 to 63 of a-z, 0-9 and -"),
        (
            expires_at is None or now < expires_at < END_OF_TIME,
            "key.expires_at",
            "must be in the future, before the year 9999",
        ),
        (len(message.display_name) <= MAX_NAME, "key.display_name", f"must be at most {MAX_NAME} characters long"),
        *_model_checks("key", message),
        *_limit_checks("key.limits", message.limits),
        *((not getattr(message, name), f"key.{name}", "is quota's to make; leave it unset") for name in _NOT_ASKED),
    )
    limits = from_pb_limits(message.limits)
    return KeyPolicy(
        key_id, message.tenant_id, digest, expires_at, False, from_pb_models(message), limits, message.display_name
    )


_NOT_ASKED = ("key_id", "hash", "revoked")


def from_pb_key_id(key_id: str) -> str:
    """Returns the id of a key."""
    require((_KEY_ID.fullmatch(key_id), "key_id", "must be 12 of a-z and 2-7"))
    return key_id


def from_pb_overlap(request: quota_pb2.RotateKeyRequest) -> float:
    """Returns for how many seconds both keys hold."""
    if not request.HasField("overlap"):
        return DEFAULT_OVERLAP_S
    seconds = request.overlap.seconds + request.overlap.nanos / 1e9
    require((0 <= seconds <= MAX_OVERLAP_S, "overlap", "must be from 0 to 30 days"))
    return seconds


def to_pb_tenant_details(directory: Directory, tenant_id: str, pepper: bytes) -> quota_pb2.Tenant:
    """Returns a tenant as administrators see it."""
    entry = directory.tenants[tenant_id]
    message = quota_pb2.Tenant(policy=masked(directory.policy(tenant_id, pepper)), etag=str(entry.version))
    names = {value: name for name, value in _VALUES.items()}
    message.overrides.paths.extend(sorted(names.get(path, path) for path in entry.value.overrides.paths()))
    message.created_at.FromNanoseconds(int(entry.created_at * 1e9))
    message.updated_at.FromNanoseconds(int(entry.updated_at * 1e9))
    return message


def masked(policy: TenantPolicy) -> quota_pb2.TenantPolicy:
    """Returns a tenant without what nobody but the mesh may know."""
    message = to_pb_tenant(policy)
    message.ClearField("isolation_key")
    return message


def to_pb_key_details(directory: Directory, key_id: str) -> quota_pb2.Key:
    """Returns a key as administrators see it."""
    entry = directory.keys[key_id]
    policy = to_pb_key(entry.value.policy)
    policy.ClearField("hash")
    message = quota_pb2.Key(policy=policy, etag=str(entry.version), replaced_by=entry.value.replaced_by)
    message.created_at.FromNanoseconds(int(entry.created_at * 1e9))
    return message


def to_pb_plan_details(directory: Directory, name: str) -> quota_pb2.Plan:
    """Returns a plan as administrators see it."""
    message = to_pb_plan(directory.plans[name].value)
    message.etag = str(directory.plans[name].version)
    return message


def to_pb_audit_event(event: AuditEvent) -> quota_pb2.AuditEvent:
    """Returns an event as a message."""
    action = event.action
    message = quota_pb2.AuditEvent(
        number=event.number,
        actor=action.actor,
        action=action.action,
        tenant_id=action.tenant_id,
        subject=action.subject,
        changes=action.changes,
        request_id=action.request_id,
    )
    message.at.FromNanoseconds(int(action.at * 1e9))
    if action.refusal:
        refusal = action.refusal
        message.refusal.CopyFrom(
            common_pb2.Error(code=refusal.code, reason=refusal.reason, message=refusal.message)  # type: ignore[arg-type]
        )
    return message


def _limits_by(before: Limits, asked: Limits, paths: Sequence[str]) -> Limits:
    if "limits" in paths:
        return asked
    named = {path.removeprefix("limits.") for path in paths if path.startswith("limits.")}
    return replace(before, **{limit: getattr(asked, limit) for limit in named})


def _tenant_checks(message: quota_pb2.TenantPolicy) -> Iterator[Check]:
    thresholds = message.thresholds
    yield len(message.display_name) <= MAX_NAME, "tenant.display_name", f"must be at most {MAX_NAME} characters long"
    yield message.service_class in quota_pb2.ServiceClass.values(), "tenant.service_class", _CLASS_RULE
    yield message.loss_policy in quota_pb2.LossPolicy.values(), "tenant.loss_policy", "must be FAIL_CLOSED or FAIL_OPEN"
    yield _within(message, "weight_milli", 1, 10**6), "tenant.weight_milli", _WEIGHT_RULE
    yield _within(message, "alert_percent", 1, 100), "tenant.alert_percent", _PERCENT_RULE
    yield (
        len(message.default_adapter) <= MAX_NAME,
        "tenant.default_adapter",
        f"must be at most {MAX_NAME} characters long",
    )
    yield not message.pool or _ID.fullmatch(message.pool), "tenant.pool", "must be 1 to 63 of a-z, 0-9 and -"
    prompt = len(message.system_prompt.encode())
    yield prompt <= MAX_SYSTEM_PROMPT_BYTES, "tenant.system_prompt", f"must be at most {MAX_SYSTEM_PROMPT_BYTES} bytes"
    zone = message.time_zone
    yield (
        not zone or zone in available_timezones(),
        "tenant.time_zone",
        "must be a name of IANA's, such as Europe/Berlin",
    )
    for name in ("warn_percent", "throttle_percent", "hard_percent"):
        rule = f"must be from 1 to {MAX_PERCENT:,}"
        yield _within(thresholds, name, 1, MAX_PERCENT), f"tenant.thresholds.{name}", rule
    ordered = (thresholds.warn_percent or 80, thresholds.throttle_percent or 100, thresholds.hard_percent or 100)
    yield (
        ordered == tuple(sorted(ordered)),
        "tenant.thresholds",
        "must rise from warn (80) over throttle (100) to hard (100)",
    )
    yield from _model_checks("tenant", message)
    yield from _name_checks("tenant.adapters", message.adapters)
    yield from _limit_checks("tenant.limits", message.limits)
    yield len(message.model_limits) <= MAX_MODEL_LIMITS, "tenant.model_limits", f"must be at most {MAX_MODEL_LIMITS}"
    yield from _name_checks("tenant.model_limits", list(message.model_limits))
    for model, limits in message.model_limits.items():
        yield from _limit_checks(f"tenant.model_limits[{model[:MAX_NAME]}]", limits)
    if message.HasField("canary"):
        steps = message.canary.steps
        yield 1 <= len(steps) <= MAX_STEPS, "tenant.canary.steps", f"must be 1 to {MAX_STEPS}"
        percents = [step.percent for step in steps]
        yield all(1 <= percent <= 99 for percent in percents), "tenant.canary.steps", "must each be of 1 to 99 percent"
        yield percents == sorted(percents), "tenant.canary.steps", "must rise: each percent at least the one before"
        lasting = all(1 <= step.holds_for.seconds <= MAX_STEP_S and not step.holds_for.nanos for step in steps)
        yield lasting, "tenant.canary.steps", "must each hold for 1s to 366d, in whole seconds"
        yield (
            0 <= message.canary.started_at.seconds < END_OF_TIME,
            "tenant.canary.started_at",
            "must be from 1970 to 9999",
        )


def _limit_checks(field: str, limits: quota_pb2.Limits) -> Iterator[Check]:
    for limit in sorted(_LIMITS):
        if limits.HasField(limit):  # type: ignore[arg-type]
            money = limit.endswith("_nano_usd")
            least, most = (0, MAX_BUDGET_NANO_USD) if money else (1, MAX_COUNT)
            rule = f"must be from {amount(limit, least)} to {amount(limit, most)}" + (
                f"; {getattr(limits, limit)} nano-USD is {amount(limit, getattr(limits, limit))}" if money else ""
            )
            yield least <= getattr(limits, limit) <= most, f"{field}.{limit}", rule


def _all_known(paths: Sequence[str], known: Collection[str], mask: str) -> Check:
    unknown = sorted(set(paths) - set(known))
    first = unknown[0][:MAX_NAME] if unknown else ""
    return not unknown, mask, f"{first!r} is no field that can be set; {instead_of(first, known)}"


def _within(message: Any, field: str, least: int, most: int) -> bool:
    """Whether a field is unset, or set to a value in bounds."""
    return not message.HasField(field) or least <= getattr(message, field) <= most


def _model_checks(field: str, message: quota_pb2.TenantPolicy | quota_pb2.KeyPolicy) -> Iterator[Check]:
    for name, models in (("models", message.models), ("model_scope.models", message.model_scope.models)):
        yield from _name_checks(f"{field}.{name}", models)
        alone = EVERY_MODEL not in models or len(models) == 1
        yield alone, f"{field}.{name}", f'must hold "{EVERY_MODEL}" alone: it allows every model'


def _name_checks(field: str, names: Sequence[str]) -> Iterator[Check]:
    yield len(names) <= MAX_MODELS, field, f"must be at most {MAX_MODELS}"
    yield all(1 <= len(name) <= MAX_NAME for name in names), field, f"must each have 1 to {MAX_NAME} characters"
