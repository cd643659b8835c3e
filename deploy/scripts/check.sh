#!/usr/bin/env bash
# Runs every static check at once, prints a line for each, and the output of those that failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH
outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT

stubs_are_current() {
  PYTHON=.venv/bin/python deploy/scripts/generate-stubs.sh "$outputs/stubs" &&
    diff -r -x __pycache__ services/forebay/api "$outputs/stubs/forebay/api"
}
contracts_break_nothing() { [[ ! -f protos/baseline.binpb ]] || buf breaking protos --against protos/baseline.binpb; }

names=() pids=()
check() { # NAME COMMAND...
  local name=$1 && shift
  (
    began=$EPOCHREALTIME
    "$@" > "$outputs/$name" 2>&1
    status=$?
    took=$(awk "BEGIN {printf \"%.1f s\", $EPOCHREALTIME - $began}")
    if ((status == 0)); then echo "ok    $name  $took"; else echo "FAIL  $name  $took"; fi
    exit $status
  ) &
  names+=("$name") pids+=($!)
}

check mypy mypy --no-error-summary
check imports lint-imports
check stubs stubs_are_current
check ruff ruff check --quiet
check format ruff format --check --quiet
check buf-lint buf lint protos
check buf-breaking contracts_break_nothing
check dependencies deptry services

failed=0
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || { failed=1 && printf '\n---- %s\n' "${names[i]}" >> "$outputs/failed" && cat "$outputs/${names[i]}" >> "$outputs/failed"; }
done
((failed)) && cat "$outputs/failed"
exit $failed
