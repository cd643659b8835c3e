"""Canary limits: a new tenant is held to a share of its limits that rises by steps."""

from __future__ import annotations

from dataclasses import fields

from forebay.policy.model import Canary, Limits, TenantPolicy


def effective_limits(policy: TenantPolicy, now: float) -> Limits:
    """Returns the limits that hold for a tenant at `now`, in seconds since the epoch.

    A share is rounded down, but not below 1: a limit of 0 could never be met, and a step is to slow a tenant, not to stop it.
    """
    percent = _percent(policy.canary, now) if policy.canary else 100
    if percent == 100:
        return policy.limits
    values = {field.name: getattr(policy.limits, field.name) for field in fields(Limits)}
    return Limits(**{name: value and max(1, value * percent // 100) for name, value in values.items()})


def _percent(canary: Canary, now: float) -> int:
    ends = canary.started_at
    for step in canary.steps:
        ends += step.seconds
        if now < ends:
            return step.percent
    return 100
