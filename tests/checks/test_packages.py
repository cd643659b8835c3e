"""Packages that bring the same files, of which one must win: see deploy/scripts/setup.sh."""

from __future__ import annotations

import importlib


def test_envoys_contracts_and_otlp_live_in_one_environment() -> None:
    importlib.import_module("envoy.service.ratelimit.v3.rls_pb2_grpc")
    importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
