"""Policies to and from quota's contract."""

from __future__ import annotations

from forebay.api.quota.v1 import quota_pb2
from forebay.policy.model import (
    EVERY_MODEL,
    Canary,
    CanaryStep,
    KeyPolicy,
    Limits,
    LossPolicy,
    ServiceClass,
    TenantPolicy,
    Thresholds,
)
from forebay.rpc.status import from_pb_timestamp

_LIMITS = tuple(Limits.__dataclass_fields__)


def to_pb_limits(limits: Limits) -> quota_pb2.Limits:
    """Returns limits as a message."""
    return quota_pb2.Limits(**{name: getattr(limits, name) for name in _LIMITS})


def from_pb_limits(message: quota_pb2.Limits) -> Limits:
    """Returns a message's limits."""
    return Limits(**{name: getattr(message, name) for name in _LIMITS if message.HasField(name)})  # type: ignore[arg-type]


def to_pb_models(models: tuple[str, ...] | None) -> quota_pb2.ModelScope | None:
    """Returns a list of models as a message; None, which is every model, has none."""
    return None if models is None else quota_pb2.ModelScope(models=models)


def from_pb_models(message: quota_pb2.TenantPolicy | quota_pb2.KeyPolicy) -> tuple[str, ...] | None:
    """Returns the models that a tenant or a key may use; None for every model."""
    if message.HasField("model_scope"):
        models = tuple(message.model_scope.models)
        return None if models == (EVERY_MODEL,) else models
    # From a release without `model_scope`, in which an empty list meant every model.
    return tuple(message.models) or None


def to_pb_tenant(tenant: TenantPolicy) -> quota_pb2.TenantPolicy:
    """Returns a tenant as a message, with its secrets; who sends it on removes what the receiver may not have."""
    return quota_pb2.TenantPolicy(
        tenant_id=tenant.tenant_id,
        display_name=tenant.display_name,
        plan=tenant.plan,
        service_class=quota_pb2.ServiceClass.ValueType(tenant.service_class.value),
        weight_milli=tenant.weight_milli,
        limits=to_pb_limits(tenant.limits),
        model_limits={model: to_pb_limits(limits) for model, limits in tenant.model_limits.items()},
        models=tenant.models,
        model_scope=to_pb_models(tenant.models),
        adapters=tenant.adapters,
        default_adapter=tenant.default_adapter,
        pool=tenant.pool,
        system_prompt=tenant.system_prompt,
        suspended=tenant.suspended,
        loss_policy=quota_pb2.LossPolicy.ValueType(tenant.loss_policy.value),
        thresholds=quota_pb2.Thresholds(
            warn_percent=tenant.thresholds.warn_percent,
            throttle_percent=tenant.thresholds.throttle_percent,
            hard_percent=tenant.thresholds.hard_percent,
        ),
        isolation_key=tenant.isolation_key,
        time_zone=tenant.time_zone,
        stop_on_budget=tenant.stop_on_budget,
        alert_percent=tenant.alert_percent,
        priced_by_plan=tenant.priced_by_plan,
        canary=to_pb_canary(tenant.canary) if tenant.canary else None,
    )


def from_pb_tenant(message: quota_pb2.TenantPolicy) -> TenantPolicy:
    """Returns a message's tenant."""
    return TenantPolicy(
        tenant_id=message.tenant_id,
        display_name=message.display_name,
        plan=message.plan,
        service_class=ServiceClass(message.service_class) if message.service_class else ServiceClass.BRONZE,
        weight_milli=message.weight_milli,
        limits=from_pb_limits(message.limits),
        model_limits={model: from_pb_limits(limits) for model, limits in message.model_limits.items()},
        models=from_pb_models(message),
        adapters=tuple(message.adapters),
        default_adapter=message.default_adapter,
        pool=message.pool,
        system_prompt=message.system_prompt,
        suspended=message.suspended,
        loss_policy=LossPolicy(message.loss_policy) if message.loss_policy else LossPolicy.FAIL_CLOSED,
        thresholds=Thresholds(
            message.thresholds.warn_percent or 80,
            message.thresholds.throttle_percent or 100,
            message.thresholds.hard_percent or 100,
        ),
        isolation_key=message.isolation_key,
        time_zone=message.time_zone or "UTC",
        stop_on_budget=message.stop_on_budget,
        alert_percent=message.alert_percent or 90,
        priced_by_plan=message.priced_by_plan,
        canary=from_pb_canary(message.canary) if message.HasField("canary") else None,
    )


def to_pb_canary(canary: Canary) -> quota_pb2.Canary:
    """Returns a schedule of limits as a message."""
    message = quota_pb2.Canary()
    message.started_at.FromNanoseconds(int(canary.started_at * 1e9))
    for step in canary.steps:
        message.steps.add(percent=step.percent).holds_for.FromSeconds(step.seconds)
    return message


def from_pb_canary(message: quota_pb2.Canary) -> Canary:
    """Returns a message's schedule of limits."""
    steps = tuple(CanaryStep(step.percent, step.holds_for.seconds) for step in message.steps)
    return Canary(from_pb_timestamp(message.started_at), steps)


def to_pb_key(key: KeyPolicy) -> quota_pb2.KeyPolicy:
    """Returns a key's policy as a message."""
    message = quota_pb2.KeyPolicy(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        hash=key.hash,
        revoked=key.revoked,
        models=key.models,
        model_scope=to_pb_models(key.models),
        limits=to_pb_limits(key.limits),
        display_name=key.display_name,
    )
    if key.expires_at is not None:
        message.expires_at.FromNanoseconds(int(key.expires_at * 1e9))
    return message


def from_pb_key(message: quota_pb2.KeyPolicy) -> KeyPolicy:
    """Returns a message's key policy."""
    return KeyPolicy(
        key_id=message.key_id,
        tenant_id=message.tenant_id,
        hash=message.hash,
        expires_at=from_pb_timestamp(message.expires_at) if message.HasField("expires_at") else None,
        revoked=message.revoked,
        models=from_pb_models(message),
        limits=from_pb_limits(message.limits),
        display_name=message.display_name,
    )
