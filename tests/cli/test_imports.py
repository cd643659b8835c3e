"""What the client and the command line load: the client stands alone, and `--help` loads no more than it prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forebay.cli.simulate_command import ScenarioName, SchedulerName

pytestmark = pytest.mark.slow

SERVICES = {"router", "quota", "scheduler", "worker", "metering"}
# Not pydantic: typer itself converts a command's arguments with it.
HEAVY = {
    "asyncio", "cryptography", "google", "grpc", "opentelemetry", "prometheus_client", "pydantic_settings", "redis", "sqlalchemy",
    "structlog", "yaml",
}  # fmt: skip


def loaded_by(program: str) -> set[str]:
    """Returns the modules that a fresh interpreter has loaded after a program."""
    script = f"import sys\ntry:\n    {program}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stderr.split())


def test_the_client_loads_contracts_errors_and_nothing_of_a_service() -> None:
    loaded = loaded_by("import forebay.client")
    parts = {name.split(".")[1] for name in loaded if name.startswith("forebay.")}
    assert parts == {"api", "client", "errors", "rpc", "words"}
    assert {name for name in loaded if name.startswith("forebay.rpc.")} == {"forebay.rpc.status"}
    packages = {name.split(".")[0] for name in loaded}
    assert not packages & (HEAVY - {"asyncio", "google", "grpc"})
    assert not packages & {"hiredis", "pydantic", "rich", "typer", "uvloop"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["usage", "tail", "--help"],
        ["tenants", "update", "--help"],
        ["simulate", "--help"],
    ],
)
def test_help_loads_no_service_and_no_grpc(arguments: list[str]) -> None:
    loaded = loaded_by(f"from forebay.cli.main import main; main({arguments!r})")
    assert "forebay.cli.main" in loaded
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert (
        not {f"forebay.{part}" for part in (*SERVICES, "api", "client", "config", "rpc", "simulator", "telemetry")}
        & loaded
    )


def test_the_names_that_help_shows_are_those_that_there_are() -> None:
    from forebay.cli.simulate import FOUR_TENANTS
    from forebay.simulator.scenarios import SCENARIOS
    from forebay.simulator.schedulers import SCHEDULERS

    assert [each.value for each in ScenarioName] == [FOUR_TENANTS, *SCENARIOS]
    assert [each.value for each in SchedulerName] == [*SCHEDULERS]
