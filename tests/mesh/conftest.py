"""Meshes of real processes: the launcher, five services and a Valkey, reached as a client reaches them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forebay.testing.processes import MeshProcesses

# Steps of the simulated engine take a twentieth of what a real one's would.
FAST = {"FOREBAY_WORKER_SIMULATED__SPEED": "20"}


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcesses]:
    """One router and one worker with the simulated engine, for tests that leave the processes alone."""
    with MeshProcesses(tmp_path_factory.mktemp("mesh") / "data", environment=FAST) as mesh:
        yield mesh
