#!/usr/bin/env bash
# Runs the tests that need packages of the system: the store tests on Redis, and all that are marked `system`. What is missing is
# installed by apt. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=()
[[ -x /usr/bin/redis-server ]] || packages+=(redis-server)
compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null || packages+=(postgresql)
if ((${#packages[@]})); then
  command -v apt-get > /dev/null || { echo "test-system: install ${packages[*]}; there is no apt here to do it" >&2; exit 1; }
  as_root=() && ((EUID == 0)) || as_root=(sudo)
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${packages[@]}"
fi

export FOREBAY_TEST_REDIS_SERVER=/usr/bin/redis-server
.venv/bin/pytest -m system "$@"
.venv/bin/pytest tests/quota tests/scheduler/test_lease_store.py -m "not system" "$@"
