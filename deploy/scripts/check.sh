#!/usr/bin/env bash
# Runs every static check at once, prints a line for each, and the output of those that failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PWD/.venv/bin:$PATH LC_ALL=C NO_COLOR=1
outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT

stubs_are_current() {
  PYTHON=.venv/bin/python deploy/scripts/generate-stubs.sh "$outputs" > /dev/null &&
    diff -r -x __pycache__ services/forebay/api "$outputs/forebay/api"
}

names=() pids=()
check() { # NAME COMMAND...
  local name=$1 && shift
  (
    began=$EPOCHREALTIME
    "$@" > "$outputs/$name.txt" 2>&1
    status=$?
    took=$(awk "BEGIN {printf \"%.1f s\", $EPOCHREALTIME - $began}")
    if ((status == 0)); then echo "ok    $name  $took"; else echo "FAIL  $name  $took"; fi
    exit $status
  ) &
  names+=("$name") pids+=($!)
}

check mypy mypy --no-error-summary
check imports lint-imports --no-logo
check stubs stubs_are_current
check ruff ruff check --quiet
check format ruff format --check --quiet
check buf-lint buf lint protos
check buf-breaking buf breaking protos --against protos/baseline.binpb
check dependencies deptry services

failed=()
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || failed+=("${names[i]}")
done
for name in "${failed[@]}"; do
  printf '\n---- %s\n' "$name"
  cat "$outputs/$name.txt"
done
exit $((${#failed[@]} > 0))
