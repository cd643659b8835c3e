"""The Prometheus metrics of every service, and the endpoint that shows a process's metrics.

A service's own metrics are in its `metrics` module: a metric that is imported is exported. A label set is bounded (law 8).
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram, start_http_server

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


def serve_metrics(listen: str) -> int:
    """Serves /metrics on host:port (port 0 takes a free one) from a thread of its own; returns the bound port."""
    host, _, port = listen.rpartition(":")
    server, _thread = start_http_server(int(port), addr=host)
    return int(server.server_port)
