"""forebay as a package: a wheel of this tree, in an environment that has nothing else, away from this tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from forebay import __version__

pytestmark = [pytest.mark.slow, pytest.mark.system]

ROOT = Path(__file__).parents[2]
# Sends one span, and fails when nobody takes it.
EXPORT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from forebay.telemetry.tracing import configure_tracing, in_span

class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    names = []
    def Export(self, request, context):
        self.names += [span.name for r in request.resource_spans for s in r.scope_spans for span in s.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

server = grpc.server(ThreadPoolExecutor(1))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
to = f"http://127.0.0.1:{port}"
provider = configure_tracing("router", "router-1", process_id=1, otlp_endpoint=to, file=None, sample_ratio=1.0)
with in_span("a request", None):
    pass
provider.force_flush()
server.stop(0)
sys.exit(Collector.names != ["a request"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("forebay-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the scripts of an environment with forebay alone, in the versions that were tested."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip(folder / "bin" / "python", "install", "--constraint", str(ROOT / "deploy/constraints/project.txt"), str(wheel))
    return folder / "bin"


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def run(installed: Path, folder: Path, *command: str) -> str:
    """Runs a command of the environment in an empty folder; returns what it prints."""
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=folder, env={"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_what_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "forebay/cli/tenants.yaml",
        "forebay/quota/plans.yaml",
        "forebay/metering/prices.yaml",
        "forebay/py.typed",
    } <= names
    for kind in (".lua", ".yaml", ".mako"):
        there = {
            f"forebay/{file.relative_to(ROOT / 'services/forebay')}" for file in (ROOT / "services").rglob(f"*{kind}")
        }
        assert there <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_runs_without_the_tools_of_developers(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "forebay", "--version") == f"forebay {__version__}\n"
    for service in ("router", "quota", "scheduler", "worker", "metering"):
        assert run(installed, tmp_path, f"forebay-{service}", "--version") == f"forebay {__version__}\n"
    there = run(installed, tmp_path, "python", "-m", "pip", "list", "--format", "freeze")
    for tool in ("pytest", "mypy", "ruff", "hypothesis", "grpcio-tools", "matplotlib"):
        assert f"{tool}==" not in there


def test_a_mesh_comes_up_and_answers(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, "forebay", "up", "--engine", "simulated", "--demo", "--exit-after-demo")
    for tenant in ("acme", "globex", "initech"):
        assert tenant in said


def test_traces_leave_by_otlp(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "python", "-c", EXPORT)
