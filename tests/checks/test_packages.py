"""What forebay brings into a process beside other packages, and what it needs of them: see pyproject.toml."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import forebay.api


def test_all_of_otlp_is_there() -> None:
    """A package that overwrites files of another's, as some with Envoy's contracts do, leaves half of it."""
    exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    exporter.OTLPSpanExporter(endpoint="http://127.0.0.1:1", insecure=True).shutdown()
    for name in ("opentelemetry.proto", "google.rpc", "google.api"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)


def test_our_contracts_define_names_of_ours_alone() -> None:
    """A process can load one file that defines a name: whoever needs Envoy's own contracts beside ours can have them."""
    files = []
    for module in pkgutil.walk_packages(forebay.api.__path__, "forebay.api."):
        if module.name.endswith("_pb2"):
            files.append(importlib.import_module(module.name).DESCRIPTOR)
    assert len(files) > 5
    for file in files:
        assert file.package.startswith("forebay.api.")
        assert file.name.startswith("forebay/api/")


@pytest.mark.xdist_group("a group")
def test_the_tests_of_a_group_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Groups share a mesh or a model, and must not run beside each other; pytest-xdist reads them off the node's id."""
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@a group")
