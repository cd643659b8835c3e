"""Quota's metrics."""

from __future__ import annotations

from prometheus_client import Gauge

# Of three limits: tokens_per_day, daily_budget_nano_usd, monthly_budget_nano_usd.
BUDGETS_DIFFERING = Gauge(
    "forebay_quota_budgets_differing",
    "Tenants whose use of a limit, as counted, is not what the ledger has.",
    ["limit"],
)
BUDGET_DIFFERENCE = Gauge(
    "forebay_quota_budget_difference",
    "By how much those differ from the ledger, added up over tenants, in the limit's unit.",
    ["limit"],
)
