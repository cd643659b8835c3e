"""Renews the constraint files with the newest releases that pyproject.toml allows, prints what changed, and runs all tests.

Usage: upgrade.py vllm|simulated [--no-tests]

    vllm        both files; the tests are those of .ci/run
    simulated   the project's file alone; leaves out the tests that need vLLM or packages of the system

The files hold for Python 3.11 to 3.13, but the tests run on the interpreter of .venv alone. When a test fails, the old files are
put back and the new ones are kept in build/upgrade/.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from constraints import FOLDER, PROJECT, ROOT, VLLM, load_project, parse, project_pins, render, table, vllm_pins

FAILED = ROOT / "build" / "upgrade"


def run(*command: str) -> bool:
    """Runs a command in the project's folder; returns whether it succeeded."""
    print(f"\nupgrade: {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def tests(engine: str) -> bool:
    """Installs what the new files say and runs the tests; returns whether all passed."""
    if engine == "vllm":
        return run(".ci/run")
    marks = "not vllm and not system"
    return run("make", "check") and run(".venv/bin/pytest", "-n", "2", "--dist", "loadgroup", "-m", marks)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    if not arguments or arguments[0] not in ("vllm", "simulated") or not {*arguments[1:]} <= {"--no-tests"}:
        print(__doc__, file=sys.stderr)
        return 2
    engine = arguments[0]
    project = load_project()
    titles = {PROJECT: "forebay with its development tools, on Python 3.11 to 3.13."}
    try:
        found = {PROJECT: project_pins(project)}
        if engine == "vllm":
            titles[VLLM] = (
                "forebay with its development tools and vLLM for CPUs, without torch, on Python 3.11 to 3.13."
            )
            found[VLLM] = vllm_pins(project)
    except subprocess.CalledProcessError as error:
        print(
            "upgrade: the newest releases do not fit together, or the package index does not answer (see above).",
            file=sys.stderr,
        )
        print("upgrade: change a range in pyproject.toml, or try again; nothing was changed.", file=sys.stderr)
        return error.returncode
    old = {name: (FOLDER / name).read_text() if (FOLDER / name).exists() else "" for name in titles}
    new = {name: render(title, found[name]) for name, title in titles.items()}
    for name in titles:
        rows = table(parse(old[name]), found[name])
        print(f"deploy/constraints/{name}: {len(rows)} changed")
        print("\n".join(rows))
    if old == new:
        print("upgrade: nothing newer; the files stay as they are, and no tests were run.")
        return 0
    _write(FOLDER, new)
    if "--no-tests" in arguments:
        print(
            "upgrade: the files are renewed and NOT tested. Run `make check test test-system` before you commit them."
        )
        return 0
    if tests(engine):
        shutil.rmtree(FAILED, ignore_errors=True)
        print("upgrade: all tests pass with the new versions; commit deploy/constraints/.")
        return 0
    _write(FAILED, new)
    _write(FOLDER, old)
    run("deploy/scripts/setup.sh", engine)
    print("upgrade: a test failed with the new versions (see above). The old files are back, and .venv with them.")
    print("upgrade: to look into it: cp build/upgrade/*.txt deploy/constraints/ and run the test again.")
    print(
        "upgrade: to go on without the release that breaks it: exclude it in pyproject.toml, and run make upgrade again."
    )
    return 1


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
