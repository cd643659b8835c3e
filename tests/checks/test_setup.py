"""The set-up on machines that lack something, with interpreters that only say what they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The first argument tells which question it is; VERSION is what the interpreter says that it is.
INTERPRETER = """#!/bin/bash
case "$1 $2" in
  "-c "*) [[ "{version}" =~ ^3\\.1[123]$ ]] ;;
  "-m venv") echo "{name} makes it" >&2; {venv} ;;
  "-m pip") case "$4 $3" in *--version*) {pip} ;; *install*) echo "no matching distribution" >&2; exit 1 ;; *) exit 1 ;; esac ;;
  "- "*) echo "a-package==1" ;;
esac
"""
MAKES = 'mkdir -p "$3/bin" && cp "$0" "$3/bin/python"'


class Machine:
    """A checkout, and the interpreters on its path."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.path = folder / "forebay", folder / "path"
        self.path.mkdir()
        for name in ("pyproject.toml", "deploy/scripts/setup.sh", "deploy/constraints"):
            place = self.checkout / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
        for name in ("bash", "cat", "cp", "cut", "dirname", "mkdir", "rm", "sed", "sha256sum"):
            found = shutil.which(name)
            assert found
            (self.path / name).symlink_to(found)

    def has(self, name: str, version: str, venv: str = MAKES, pip: str = "exit 0") -> Path:
        """Adds an interpreter."""
        place = self.path / name
        place.write_text(INTERPRETER.format(name=name, version=version, venv=venv, pip=pip))
        place.chmod(0o755)
        return place

    def set_up(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs the set-up; returns its exit status and what it says of errors."""
        bash = shutil.which("bash")
        assert bash
        done = subprocess.run(
            [bash, str(self.checkout / "deploy/scripts/setup.sh"), *(arguments or ("simulated",))],
            env={"PATH": str(self.path), "HOME": os.environ.get("HOME", "/"), **environment},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_suitable_python_nothing_is_made(machine: Machine) -> None:
    machine.has("python3", "3.10")
    machine.has("python3.11", "not there")  # as a version manager's name that leads nowhere
    status, said = machine.set_up()
    assert status == 1
    assert "there is no Python 3.11, 3.12 or 3.13 here" in said
    assert "PYTHON=" in said
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": "3.13", "python3.12": "3.12", "python3.11": "3.11"}, "python3.11"),
        ({"python3": "3.14", "python3.13": "3.13"}, "python3.13"),
        ({"python3": "3.12", "python3.11": "not there"}, "python3"),
    ],
)
def test_the_first_suitable_python_is_taken(machine: Machine, there: dict[str, str], taken: str) -> None:
    for name, version in there.items():
        machine.has(name, version, venv="exit 1")
    status, said = machine.set_up()
    assert status == 1
    assert f"{taken} makes it\n" in said
    assert "python3-venv" in said, "what to do when it cannot"
    assert not (machine.checkout / ".venv").exists(), "half an environment would be taken for a whole one"


def test_a_python_that_is_named_is_taken_or_refused(machine: Machine) -> None:
    machine.has("python3.11", "3.11", venv="exit 1")
    named = str(machine.has("mine", "3.14"))
    status, said = machine.set_up(PYTHON=named)
    assert (status, f"{named} is not Python 3.11, 3.12 or 3.13" in said) == (1, True)
    machine.has("mine", "3.12", venv="exit 1")
    assert "mine makes it" in machine.set_up(PYTHON=named)[1]


def test_an_environment_that_is_none_is_not_touched(machine: Machine) -> None:
    machine.has("python3.11", "3.11")
    (machine.checkout / ".venv").mkdir()
    (machine.checkout / ".venv" / "mine").touch()
    status, said = machine.set_up()
    assert (status, "rm -r .venv" in said) == (1, True)
    assert (machine.checkout / ".venv" / "mine").exists()


def test_an_environment_without_pip_is_told_of(machine: Machine) -> None:
    machine.has("python3.11", "3.11", pip="exit 1")
    status, said = machine.set_up()
    assert (status, ".venv has no pip" in said) == (1, True)


@pytest.mark.slow
def test_an_index_without_a_tested_version_says_what_to_do(machine: Machine) -> None:
    machine.has("python3.12", "3.12")
    status, said = machine.set_up()
    assert status == 1
    assert "no matching distribution" in said, "pip's own words first"
    assert "deploy/constraints/project.txt" in said
    assert "make setup PINNED=no" in said
    assert "make upgrade ENGINE=simulated" in said
    assert "PINNED=no" not in machine.set_up(PINNED="no")[1]
    assert "deploy/constraints/vllm-cpu.txt" in machine.set_up("vllm", "run")[1]
    assert not list((machine.checkout / ".venv").glob(".made-for-*"))


@pytest.mark.parametrize(
    ("arguments", "environment"), [(("vlm",), {}), (("vllm", "fast"), {}), ((), {"PINNED": "maybe"})]
)
def test_what_is_asked_wrongly(machine: Machine, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    assert machine.set_up(*arguments, **environment)[0] == 2
