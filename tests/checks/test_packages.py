"""Packages that are only right together: see deploy/scripts/setup.sh and pyproject.toml."""

from __future__ import annotations

import importlib

import pytest


def test_envoys_contracts_and_otlp_live_in_one_environment() -> None:
    importlib.import_module("envoy.service.ratelimit.v3.rls_pb2_grpc")
    importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")


@pytest.mark.xdist_group("a group")
def test_the_tests_of_a_group_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Groups share a mesh or a model, and must not run beside each other; pytest-xdist reads them off the node's id."""
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@a group")
