"""The checks check: the import contracts fail on the imports that they forbid."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on a copy of the tree."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(tree / "services"), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "services", tmp_path / "services", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_tree_as_it_is_keeps_every_contract(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("scheduler/domain/__init__.py", "import grpc", "Domains are pure"),
        ("metering/domain/__init__.py", "from forebay.clock import SystemClock", "Domains are pure"),
        ("router/main.py", "import forebay.scheduler.service", "Services meet only on the wire"),
        ("worker/domain/__init__.py", "import forebay.worker.service", "The wiring is on top of each service"),
        ("worker/service.py", "import vllm", "One module imports vllm"),
        ("client/client.py", "import forebay.rpc.client", "The client stands alone"),
        ("rpc/status.py", "import structlog", "The client stands alone"),
    ],
)
def test_a_forbidden_import_is_found(tree: Path, module: str, line: str, contract: str) -> None:
    file = tree / "services" / "forebay" / module
    file.write_text(f"{file.read_text()}\n{line}\n")
    result = lint(tree)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout
