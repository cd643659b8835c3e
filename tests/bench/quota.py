"""What a reservation costs, and whether any limit can be overrun when processes die while holding.

    python tests/bench/quota.py                 # everything, in two minutes
    python tests/bench/quota.py --only pairs    # a part, as many as wanted

Parts, whose figures are the last line, as one JSON object:
  pairs      pairs of reserve and settle by 64 callers at once: over the batched session, over unary calls, and by the same
             scripts called straight on the same server; they take turns, and of each the median turn counts, so that what
             else the machine does falls on all alike
  limits     processes that run into every limit, of which some are killed (overrun.py)
  changes    how long what an administrator changes takes to hold on running routers (administration.py)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import administration
import overrun
import uvloop
from quota_process import (
    COMPLETION,
    NANO_USD_PER_TOKEN,
    PROMPT,
    policies,
    reserve_request,
    serve,
    session,
    settle_request,
)

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2_grpc
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.quota.redis_counters import _RESERVE, _SETTLE, RedisCounters, _key, _Script
from forebay.rpc.client import connect
from forebay.telemetry.logs import configure_logs
from forebay.testing.valkey import ValkeyServer

PARTS = ("pairs", "limits", "changes")
CALLERS, SECONDS = 64, 1.0
Reserve = Callable[[str, str], Awaitable[Any]]


class Straight(RedisCounters):
    """The same scripts, each called by itself."""

    def _call(self, script: _Script, tenant_id: str, *arguments: str | int, request_id: str = "") -> Any:
        keys = (_key(tenant_id, part) for part in ("counters", "reservations", "settled", "due"))
        return self._redis.evalsha(script.sha, 4, *keys, 0, *arguments)

    async def load(self) -> None:
        for script in (_RESERVE, _SETTLE):
            await self._redis.script_load(script.text)


async def pairs(reserve: Reserve, settle: Reserve) -> tuple[float, list[float]]:
    """Returns pairs per second, and how long each call took, in seconds."""
    took: list[float] = []
    count = 0
    ends = time.perf_counter() + SECONDS

    async def caller() -> None:
        nonlocal count
        while (began := time.perf_counter()) < ends:
            request_id = f"{random.getrandbits(128):032x}"
            await reserve("free", request_id)
            reserved = time.perf_counter()
            await settle("free", request_id)
            took.extend((reserved - began, time.perf_counter() - reserved))
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / (time.perf_counter() - began), took


async def measure(address: str, redis_url: str, rounds: int) -> dict[str, float]:
    """Returns the figures of the first part."""
    straight, tenant = Straight(redis_url, Terms()), policies().tenants["free"]
    await straight.load()
    usage = Usage(1, PROMPT, COMPLETION, cost_nano_usd=(PROMPT + COMPLETION) * NANO_USD_PER_TOKEN)
    rows, amounts, owner = rows_of(tenant, usage, time.time()), amounts_of(usage), Router("router-raw", 1)

    async def raw_reserve(tenant: str, request_id: str) -> None:
        await straight.reserve(tenant, Order(request_id, owner, PROMPT, COMPLETION), rows)

    async def raw_settle(tenant: str, request_id: str) -> None:
        await straight.settle(tenant, request_id, amounts)

    async with connect(address, caller="bench") as channel, session(channel, "router-bench") as batched:
        stub, router = quota_pb2_grpc.QuotaServiceStub(channel), common_pb2.Peer(id="router-unary", incarnation=1)

        async def reserve(tenant: str, request_id: str) -> None:
            request = reserve_request(tenant, request_id)
            request.router.CopyFrom(router)
            await stub.Reserve(request)

        async def settle(tenant: str, request_id: str) -> None:
            request = settle_request(tenant, request_id)
            request.router.CopyFrom(router)
            await stub.Settle(request)

        ways = {
            "pairs_per_s": (batched.reserve, batched.settle),
            "unary_pairs_per_s": (reserve, settle),
            "raw_pairs_per_s": (raw_reserve, raw_settle),
        }
        rates, took = defaultdict(list), []
        for _ in range(rounds):
            for name, way in ways.items():
                rate, times = await pairs(*way)
                rates[name].append(rate)
                took += times if name == "pairs_per_s" else ()
    await straight._redis.aclose()
    result = {name: round(statistics.median(rates[name])) for name in ways}
    cuts = statistics.quantiles(took, n=100)
    return {
        **result,
        "ratio": round(result["pairs_per_s"] / result["raw_pairs_per_s"], 2),
        "p50_ms": round(cuts[49] * 1_000, 2),
        "p99_ms": round(cuts[98] * 1_000, 2),
    }


def on_one_server(parts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Returns the figures of the parts that need nothing but one quota service and its counters."""
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        valkey = ValkeyServer(Path(folder) / "valkey")
        valkey.start()
        ready, told = spawn.Pipe()
        quota = spawn.Process(target=serve, args=(valkey.url, told))
        quota.start()
        try:
            address = ready.recv()
            if "pairs" in parts:
                print(f"{CALLERS} callers; quota, counters and callers all on this machine\n")
                result = uvloop.run(measure(address, valkey.url, rounds))
                for name, figure in result.items():
                    print(f"{name:<20}{figure:>10}")
            if "limits" in parts:
                print(
                    "\nten processes run into every limit, two die holding; a lease and a sweep later nothing may be held …",
                    flush=True,
                )
                logs = Path(folder) / "logs"
                logs.mkdir()
                result |= uvloop.run(overrun.measure(address, logs))
        finally:
            quota.terminate()
            quota.join()
            valkey.stop()
    return result


def main() -> None:
    """Measures, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help="a part; repeatable")
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of a second that each way of pairs has (default 7)"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    parts = arguments.only or PARTS
    configure_logs("quota", "bench", "error")
    result = on_one_server(parts, arguments.rounds)
    if "changes" in parts:
        result |= uvloop.run(administration.measure())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
