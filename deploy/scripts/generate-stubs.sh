#!/usr/bin/env bash
# Regenerates services/forebay/api from protos/. Usage: generate-stubs.sh [OUT]; OUT defaults to services.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-services}
python=${PYTHON:-.venv/bin/python}
export PATH="$(dirname "$(command -v "$python")"):$PATH"
rm -rf "$out/forebay/api"
mkdir -p "$out"
mapfile -t files < <(cd protos && find forebay -name '*.proto' | sort)
"$python" -m grpc_tools.protoc -I protos --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" \
  --mypy_grpc_out="quiet:$out" "${files[@]}"
# A folder without __init__.py is a namespace package, which import-linter and mypy treat apart.
find "$out/forebay/api" -type d -exec sh -c 'printf "" > "$1/__init__.py"' _ {} \;
printf '"""Generated from protos/ by `make protos`; never edited by hand."""\n' > "$out/forebay/api/__init__.py"
