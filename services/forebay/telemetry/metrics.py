"""Prometheus metrics: names and buckets in one place, and the endpoint that shows them.

Tenants are not labels yet: their number is not bounded here, and a label set has to be (law 8).
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

RPC_SECONDS = Histogram(
    "forebay_rpc_seconds",
    "Time that a unary call, or a stream from open to close, took on its server.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

ERRORS = Counter("forebay_errors_total", "Errors that a server answered with.", ["method", "reason"])

SESSION_RECONNECTS = Counter("forebay_session_reconnects_total", "Sessions that had to be opened again.", ["session"])

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


def serve_metrics(listen: str) -> int:
    """Serves /metrics on host:port (port 0 takes a free one) from a thread of its own; returns the bound port."""
    host, _, port = listen.rpartition(":")
    server, _thread = start_http_server(int(port), addr=host)
    return int(server.server_port)
