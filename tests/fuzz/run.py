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

import yaml

from forebay.testing.processes import MeshProcesses

from .fuzzer import HOSTILE, Fuzzer

WARM_UP = 2_000
MAX_GROWTH = 1.1
ENVIRONMENT = {
    "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "0",
    "FOREBAY_WORKER_SIMULATED__SPEED": "20",
    # The C library gives back at once what is freed, so that what a process has is what it holds.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def resident_mb(pid: int) -> float:
    """Returns how much memory a process holds, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_000
    return 0.0


async def run(data: Path, messages: int, seed: int) -> dict[str, Any]:
    """Fuzzes a mesh in a new data directory; returns what came of it."""
    with MeshProcesses(data, tenants=_tenants(data), environment=ENVIRONMENT) as mesh:
        pids = {name: process["pid"] for name, process in mesh.state()["processes"].items()}
        started = time.monotonic()
        async with Fuzzer(mesh, seed) as fuzzer:

            async def memory() -> dict[str, float]:
                await fuzzer.calm()
                return {name: resident_mb(pid) for name, pid in pids.items()}

            await fuzzer.send(min(WARM_UP, messages // 2))
            before = await memory()
            await fuzzer.send(messages - fuzzer.messages.total())
            after = await memory()
            serves = await fuzzer.serves()
            seconds = time.monotonic() - started
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
            "memory_growth": round(sum(after.values()) / sum(before.values()), 3),
            "memory_growth_by_process": {name: round(after[name] / before[name], 3) for name in after},
            "serves_afterwards": serves,
        }


def _tenants(data: Path) -> Path:
    """Returns a tenants file with the sample's three and one more, whose key and limits are misused."""
    tenants = {"acme": "enterprise", "globex": "standard", "initech": "basic", HOSTILE: "enterprise"}
    file = data.parent / "tenants.yaml"
    file.write_text(yaml.safe_dump({"tenants": {name: {"plan": plan} for name, plan in tenants.items()}}))
    return file


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


def faults(result: dict[str, Any]) -> list[str]:
    """Returns the names of the figures that are not as they must be."""
    bad = [name for name in ("crashes", "untyped_errors", "handlers_failed") if result[name]]
    bad += ["memory_growth"] if result["memory_growth"] > MAX_GROWTH else []
    return bad + ([] if result["serves_afterwards"] else ["serves_afterwards"])


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
    return int(bool(faults(result)))


if __name__ == "__main__":
    sys.exit(main())
