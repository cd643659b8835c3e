"""`python tests/fuzz/run.py`: fuzzes a mesh of its own and prints a table and, last, one JSON object."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "fuzz"

from forebay.testing.processes import MeshProcesses

from .fuzzer import Fuzzer

WARM_UP = 2_000
MAX_GROWTH = 1.1
FAST = {"FOREBAY_WORKER_SIMULATED__SPEED": "20"}


def resident_mb(pid: int) -> float:
    """Returns how much memory a process holds, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_000
    return 0.0


async def run(data: Path, messages: int, seed: int) -> dict[str, Any]:
    """Fuzzes a mesh in a new data directory; returns what came of it."""
    with MeshProcesses(data, environment=FAST) as mesh:
        pids = {name: process["pid"] for name, process in mesh.state()["processes"].items()}
        started = time.monotonic()
        async with Fuzzer(mesh, seed) as fuzzer:

            async def memory() -> dict[str, float]:
                return {name: resident_mb(pid) for name, pid in pids.items()}

            await fuzzer.send(min(WARM_UP, messages // 2))
            before = await memory()
            await fuzzer.send(messages - fuzzer.messages.total())
            after = await memory()
            seconds = time.monotonic() - started
            serves = await fuzzer.serves()
            now = mesh.state()["processes"]
        _print(fuzzer, before, after)
        crashes = [name for name, pid in pids.items() if now[name]["pid"] != pid]
        bugs = sum(file.read_text(errors="replace").count("handler failed") for file in (data / "logs").glob("*.log"))
        return {
            "seed": seed,
            "messages": fuzzer.messages.total(),
            "calls": fuzzer.outcomes.by_end.total(),
            "rpcs": fuzzer.methods,
            "seconds": round(seconds, 1),
            "crashes": len(crashes),
            "crashed": crashes,
            "untyped_errors": fuzzer.outcomes.untyped.total(),
            "handlers_failed": bugs,
            "memory_growth_max": round(max(after[name] / before[name] for name in after), 3),
            "memory_growth": {name: round(after[name] / before[name], 3) for name in after},
            "serves_afterwards": serves,
        }


def _print(fuzzer: Fuzzer, before: dict[str, float], after: dict[str, float]) -> None:
    print(f"{'rpc':<62} {'ended with':<48} {'calls':>6}")
    for (method, code, reason), count in sorted(fuzzer.outcomes.by_end.items()):
        print(f"{method:<62} {code + ' ' + reason:<48} {count:>6}")
    print("\nmessages: " + ", ".join(f"{kind} {count}" for kind, count in fuzzer.messages.most_common()))
    print(f"\n{'process':<14} {'MB early':>9} {'MB late':>9}")
    for name, mb in after.items():
        print(f"{name:<14} {before[name]:>9.1f} {mb:>9.1f}")
    for key, count in fuzzer.outcomes.untyped.most_common():
        print(f"\nUNTYPED {count} × {' '.join(key)}\n  e.g. {fuzzer.outcomes.examples[key]}")
    print()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, help="keep the mesh's data directory here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        result = asyncio.run(run(options.data or Path(scratch) / "data", options.messages, options.seed))
    print(json.dumps(result))
    found = result["crashes"] or result["untyped_errors"] or result["memory_growth_max"] > MAX_GROWTH
    return int(bool(found) or not result["serves_afterwards"])


if __name__ == "__main__":
    sys.exit(main())
