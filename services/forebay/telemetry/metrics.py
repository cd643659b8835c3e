"""Prometheus metrics: names and buckets in one place, and the endpoint that shows them.

A label set is bounded (law 8). Where tenants are labels, MAX_TENANTS of them are, and what is left goes under OTHERS.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

MAX_TENANTS = 100
OTHERS = "(others)"

RPC_SECONDS = Histogram(
    "forebay_rpc_seconds",
    "Time that a unary call, or a stream from open to close, took on its server.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

ERRORS = Counter("forebay_errors_total", "Errors that a server answered with.", ["method", "reason"])

SESSION_RECONNECTS = Counter("forebay_session_reconnects_total", "Sessions that had to be opened again.", ["session"])

LOG_LINES_LOST = Counter("forebay_log_lines_lost_total", "Log lines that could not be written.")
SPANS_LOST = Counter("forebay_spans_lost_total", "Spans that could not be written to the trace file.")

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


# The scheduler's, of the one that leads. Service is in weighted tokens: input counts 1, cached input 0.1, output 2.
TENANT_SERVICE = Gauge("forebay_tenant_service_tokens", "Service received since this scheduler leads.", ["tenant"])
TENANT_OWED = Gauge("forebay_tenant_owed_tokens", "Service owed while something waited or ran.", ["tenant"])
FAIRNESS = Gauge(
    "forebay_pool_fairness", "Jain's index over tenants' service for what they were owed.", ["model", "pool"]
)
KV_USED = Gauge("forebay_worker_kv_used_ratio", "Part of the KV cache in use, as its engine says.", ["worker"])
KV_EXPECTED = Gauge("forebay_worker_kv_expected_ratio", "Part of the KV cache at the future peak.", ["worker"])
SLOTS_USED = Gauge("forebay_worker_slots_used_ratio", "Part of the engine's sequences in flight.", ["worker"])
ALPHA = Gauge("forebay_worker_alpha", "Part of the KV cache that the future peak may take.", ["worker"])
PREEMPTIONS = Gauge("forebay_worker_preemptions", "Preemptions since its engine started.", ["worker"])
QUEUED = Gauge("forebay_queue_requests", "Requests that wait.", ["service_class"])
OLDEST_SECONDS = Gauge("forebay_queue_oldest_seconds", "The longest wait of what waits.", ["service_class"])
GRANTS = Counter("forebay_scheduler_grants_total", "Requests that were let run.")
EVICTIONS = Counter("forebay_scheduler_evictions_total", "Requests that had to make room for others.")
REJECTIONS = Counter("forebay_scheduler_rejections_total", "Requests that were turned away.", ["reason"])


def serve_metrics(listen: str) -> int:
    """Serves /metrics on host:port (port 0 takes a free one) from a thread of its own; returns the bound port."""
    host, _, port = listen.rpartition(":")
    server, _thread = start_http_server(int(port), addr=host)
    return int(server.server_port)
