"""What each service exports: the metrics of all services and its own, and no other service's."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHARED = {"forebay_rpc_seconds", "forebay_errors", "forebay_session_reconnects"}
OWN = {
    "quota": "forebay_quota_",
    "scheduler": ("forebay_tenant_", "forebay_pool_", "forebay_worker_", "forebay_queue_", "forebay_scheduler_"),
}
PROGRAM = """
import importlib
importlib.import_module("forebay.{service}.main")
from prometheus_client import REGISTRY
print(*(metric.name for metric in REGISTRY.collect() if metric.name.startswith("forebay_")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("service", ["router", "quota", "scheduler", "worker", "metering"])
def test_a_service_exports_its_own_metrics_alone(service: str) -> None:
    program = PROGRAM.format(service=service)
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    others = {
        name for other, prefixes in OWN.items() if other != service for name in names if name.startswith(prefixes)
    }
    assert (others, SHARED - set(names)) == (set(), set())
    assert service not in OWN or any(name.startswith(OWN[service]) for name in names)
