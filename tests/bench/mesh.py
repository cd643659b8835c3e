"""`make bench-mesh`: what the five services cost, with an engine that costs nothing.

The mesh runs as processes, as `forebay up` starts it, with a simulated engine whose steps take no time and which never runs
further than 8 tokens ahead of what the client has been sent. Beside it, in the same minute, runs a bare grpc.aio server
(bare_server.py). The last line is one JSON object; there are no targets and nothing fails on a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import neighbour
import uvloop
import yaml
from load import Count, Load

from forebay.testing.processes import MeshProcesses

STREAMS = (1, 16, 64, 256)
WINDOW = 8
UNLIMITED = 1_000_000_000
HERE = Path(__file__).parent

ZERO_COST = {
    "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "0",
    "FOREBAY_WORKER_SIMULATED__FREE": "true",
    "FOREBAY_WORKER_SIMULATED__WINDOW_TOKENS": str(WINDOW),
    "FOREBAY_WORKER_SIMULATED__MAX_NUM_SEQS": "512",
    "FOREBAY_WORKER_SIMULATED__KV_TOKENS": "4000000",
}


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Processor time by service between two moments."""

    def __init__(self, mesh: MeshProcesses) -> None:
        self._mesh = mesh
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        used: dict[str, float] = {}
        for name, process in self._mesh.state()["processes"].items():
            service = name.rstrip("0123456789-")
            used[service] = used.get(service, 0.0) + cpu_seconds(process["pid"])
        return used

    def us_per(self, count: int) -> dict[str, float]:
        """Returns microseconds of each service per one of `count`, since the meter was made."""
        after = self._read()
        return {name: round((after[name] - self._before[name]) * 1e6 / max(1, count), 2) for name in sorted(after)}


@asynccontextmanager
async def bare_server(tokens_per_message: float) -> AsyncIterator[str]:
    """Runs the yardstick; yields its address."""
    command = [sys.executable, str(HERE / "bare_server.py"), str(max(1, round(tokens_per_message)))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        yield f"127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


def quantile_ms(seconds: list[float], share: float) -> float:
    """Returns a quantile in milliseconds."""
    return statistics.quantiles(seconds, n=1000)[int(share * 1000) - 1] * 1000


async def measure(mesh: MeshProcesses, seconds: float) -> dict[str, object]:
    """Runs every part and returns the figures."""
    load = Load(mesh.router_address(), mesh.key("bench"))
    figures: dict[str, dict[str, float]] = {"tokens_per_s": {}, "raw_tokens_per_s": {}, "tokens_per_message": {}}
    cpu_us_per_token: dict[str, float] = {}
    await load.requests(8, 50, 1)
    print(f"{'streams':>8}{'tokens/s':>12}{'bare':>12}{'ratio':>8}{'tokens/message':>16}", flush=True)
    for streams in STREAMS:
        meter = Meter(mesh)
        mesh_count = await load.streams(streams, seconds, tokens=2_000)
        if streams == 64:
            cpu_us_per_token = meter.us_per(mesh_count.tokens)
        async with bare_server(max(1.0, mesh_count.tokens_per_message)) as address:
            bare = Load(address, "none")
            bare_count = await bare.streams(streams, seconds, tokens=2_000)
            await bare.close()
        row(streams, mesh_count, bare_count)
        figures["tokens_per_s"][str(streams)] = round(mesh_count.tokens_per_s)
        figures["raw_tokens_per_s"][str(streams)] = round(bare_count.tokens_per_s)
        figures["tokens_per_message"][str(streams)] = round(mesh_count.tokens_per_message, 2)
    meter = Meter(mesh)
    requests = await load.requests(64, 2_000, 1)
    cpu_us_per_request = meter.us_per(requests.requests)
    first = await load.first_tokens(300)
    async with bare_server(1) as address:
        bare = Load(address, "none")
        bare_first = await bare.first_tokens(300)
        await bare.close()
    await load.close()
    result: dict[str, object] = {
        **figures,
        "requests_per_s": round(requests.requests_per_s),
        "added_ttft_ms_p50": round(quantile_ms(first, 0.5) - quantile_ms(bare_first, 0.5), 2),
        "added_ttft_ms_p99": round(quantile_ms(first, 0.99) - quantile_ms(bare_first, 0.99), 2),
        "cpu_us_per_token": cpu_us_per_token,
        "cpu_us_per_request": cpu_us_per_request,
    }
    print(f"\nrequests/s (64 at a time, one token each): {result['requests_per_s']}")
    print(
        f"time to first token beyond a bare server: p50 {result['added_ttft_ms_p50']} ms, p99 {result['added_ttft_ms_p99']} ms"
    )
    return result


def row(streams: int, mesh: Count, bare: Count) -> None:
    """Prints one line of the table."""
    ratio = f"{mesh.tokens_per_s / bare.tokens_per_s:.2f}" if bare.tokens else "–"
    print(
        f"{streams:>8}{mesh.tokens_per_s:>12,.0f}{bare.tokens_per_s:>12,.0f}{ratio:>8}{mesh.tokens_per_message:>16.2f}",
        flush=True,
    )


def tenants_file(directory: Path) -> Path:
    """Writes a tenants file with one tenant that no limit holds back, and one of the smallest plan."""
    names = ("requests_per_second", "requests_per_minute", "tokens_per_minute", "concurrent_requests")
    limits = dict.fromkeys(names, UNLIMITED)
    file = directory / "tenants.yaml"
    tenants = {"bench": {"plan": "enterprise", "limits": limits}, "hostile": {"plan": "free"}}
    file.write_text(yaml.safe_dump({"tenants": tenants}))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each level is measured (default 4)")
    parser.add_argument("--only", choices=("throughput", "neighbour"), help="one part alone")
    arguments = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as directory:
        tenants = tenants_file(Path(directory))
        with MeshProcesses(Path(directory) / "data", tenants=tenants, environment=ZERO_COST) as mesh:
            print("five services, one worker, one router, zero-cost engine; client and all on this machine\n")
            if arguments.only != "neighbour":
                result |= uvloop.run(measure(mesh, arguments.seconds))
            if arguments.only != "throughput":
                print("\na small request of one tenant beside another's largest\n")
                address, keys = mesh.router_address(), (mesh.key("hostile"), mesh.key("bench"))
                result |= neighbour.measure(address, *keys, arguments.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
