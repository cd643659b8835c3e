"""Canary limits: a new tenant is held to a share of its limits that rises by steps."""

from __future__ import annotations

from dataclasses import fields, replace

from forebay.policy.model import Canary, Limits, TenantPolicy


def effective_limits(policy: TenantPolicy, now: float) -> TenantPolicy:
    """Returns a tenant with the limits that hold at `now`, in seconds since the epoch.

    A share is rounded down, but not below 1: a limit of 0 could never be met, and a step is to slow a tenant, not to stop it.
    """
    percent = _percent(policy.canary, now) if policy.canary else 100
    if percent == 100:
        return policy
    of_models = {model: _share(limits, percent) for model, limits in policy.model_limits.items()}
    return replace(policy, limits=_share(policy.limits, percent), model_limits=of_models)


def _share(limits: Limits, percent: int) -> Limits:
    values = {field.name: getattr(limits, field.name) for field in fields(Limits)}
    return Limits(**{name: value and max(1, value * percent // 100) for name, value in values.items()})


def _percent(canary: Canary, now: float) -> int:
    ends = canary.started_at
    for step in canary.steps:
        ends += step.seconds
        if now < ends:
            return step.percent
    return 100
