"""`make bench-quota`: what a reservation costs, and whether any limit can be overrun when processes die while holding.

First, pairs of reserve and settle by 64 callers at once: over the batched session, over unary calls, and by the same scripts
called straight on the same server. The three take turns, and of each the median turn counts, so that what else the machine does
falls on all alike. Then ten processes of 100 callers each run into every kind of limit; two of them are killed
while they hold. What was admitted is counted by the callers themselves. Last, what an administrator changes is timed on running
routers (administration.py). The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import administration
import grpc
import uvloop

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import SystemClock
from forebay.errors import MeshError
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy, Thresholds
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.reservations import Order, Router, Terms
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.redis_counters import _RESERVE, _SETTLE, RedisCounters, _key, _Script
from forebay.quota.service import Quota
from forebay.quota.servicer import QuotaServicer
from forebay.quota.sweeper import Sweeper
from forebay.quota.usage_sums import InMemorySums
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer
from forebay.rpc.session import Outbox, SessionClient
from forebay.telemetry.logs import configure_logs
from forebay.testing.valkey import ValkeyServer

CALLERS, ROUNDS, SECONDS = 64, 7, 1.0
PROCESSES, VICTIMS, CALLERS_EACH, STORM_S, KILL_AFTER_S = 10, 2, 100, 8.0, 3.0
HOLD_S, RETRY_S = 0.05, 0.25
# One lease and one sweep, as the service is configured by default.
LEASE_S, ALL_GIVEN_BACK_S = 30.0, 40.0
PROMPT, COMPLETION = 10, 10
NANO_USD_PER_TOKEN = 1_000
REQUESTS, PER_SECOND, AT_ONCE = 300, 40, 40
# A hold is rounded up for each item.
BUDGET = REQUESTS * ((PROMPT + COMPLETION) * NANO_USD_PER_TOKEN + 1)

LIMITS = {
    "requests_per_second": PER_SECOND,
    "requests_per_minute": REQUESTS,
    "tokens_per_minute": REQUESTS * (PROMPT + COMPLETION),
    "input_tokens_per_minute": REQUESTS * PROMPT,
    "output_tokens_per_minute": REQUESTS * COMPLETION,
    "concurrent_requests": AT_ONCE,
    "tokens_per_day": REQUESTS * (PROMPT + COMPLETION),
    "daily_budget_nano_usd": BUDGET,
    "monthly_budget_nano_usd": BUDGET,
}
Reserve = Callable[[str, str], Awaitable[Any]]


def tenant_id(limit: str) -> str:
    return limit.replace("_", "-")


def policies() -> Policies:
    """Returns one tenant for each limit, one limited by its key, one on its model, and one without any."""
    quiet = Thresholds(warn_percent=1_000)

    def tenant(name: str, limits: Limits, **fields: Any) -> TenantPolicy:
        return TenantPolicy(name, "bench", ServiceClass.GOLD, 1_000, limits=limits, thresholds=quiet, **fields)

    tenants = [tenant(tenant_id(limit), Limits(**{limit: value})) for limit, value in LIMITS.items()]
    tenants += [
        tenant("free", Limits()),
        tenant("by-key", Limits()),
        tenant("by-model", Limits(), model_limits={"m": Limits(tokens_per_minute=LIMITS["tokens_per_minute"])}),
    ]
    keys = [KeyPolicy(f"key-{each.tenant_id}", each.tenant_id, b"h" * 32) for each in tenants]
    keys.append(KeyPolicy("key-by-key", "by-key", b"h" * 32, limits=Limits(requests_per_minute=REQUESTS)))
    return Policies({each.tenant_id: each for each in tenants}, {key.key_id: key for key in keys}, {})


def serve(redis_url: str, ready: Connection) -> None:
    """Runs quota as a process; tells its address."""
    configure_logs("quota", "bench", "error")

    async def run() -> None:
        clock = SystemClock()
        items = ("prompt_tokens", "cached_tokens", "completion_tokens")
        prices = Prices(PriceTable([Price("default", item, NANO_USD_PER_TOKEN * 10**6) for item in items]))
        redis = RedisCounters(redis_url, Terms(lease_ms=round(LEASE_S * 1_000)))
        feed = PolicyFeed(policies(), clock)
        counters = RebuildingCounters(redis, feed, InMemorySums(), clock.now)  # a ledger that knows nobody
        server = RpcServer("127.0.0.1:0")
        quota = Quota(feed, counters, prices, clock.now)
        name = "forebay.api.quota.v1.QuotaService"
        server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaServicer(quota, clock, LEASE_S), name)
        sweeper = Sweeper(counters, clock, LEASE_S, lambda reachable: None)
        async with background(redis.run(), "counters"), background(sweeper.run(), "sweeper"):
            await server.start()
            ready.send(server.address)
            await asyncio.Event().wait()

    uvloop.run(run())


class Session:
    """A router's session with quota."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._router = common_pb2.Peer(id=name, incarnation=time.time_ns() // 1_000)
        self._seq = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        self.client: SessionClient[Any, Any] = SessionClient("quota", stub.Session, quota_pb2.SessionRequest, self)

    def opened(self, outbox: Outbox[quota_pb2.SessionRequest]) -> None:
        outbox.message.hello.router.CopyFrom(self._router)
        outbox.flush()

    def received(self, response: quota_pb2.SessionResponse) -> None:
        for result in (*response.reserves, *response.settles):
            self._answers.pop(result.seq).set_result(result)

    def closed(self, error: MeshError) -> None:
        """Nothing is repeated: whoever waits has lost."""

    async def reserve(self, tenant: str, request_id: str) -> str:
        """Returns the limit that refuses, or nothing when it is held."""
        seq, answer = self._ask()
        self._outbox().message.reserves.add(seq=seq, request=reserve_request(tenant, request_id))
        self._outbox().flush()
        return str((await answer).error.reason)

    async def settle(self, tenant: str, request_id: str) -> None:
        seq, answer = self._ask()
        self._outbox().message.settles.add(seq=seq, request=settle_request(tenant, request_id))
        self._outbox().flush()
        await answer

    def _ask(self) -> tuple[int, asyncio.Future[Any]]:
        seq = next(self._seq)
        self._answers[seq] = asyncio.get_running_loop().create_future()
        return seq, self._answers[seq]

    def _outbox(self) -> Outbox[Any]:
        assert self.client.outbox is not None
        return self.client.outbox


def reserve_request(tenant: str, request_id: str) -> quota_pb2.ReserveRequest:
    return quota_pb2.ReserveRequest(
        request_id=request_id,
        tenant_id=tenant,
        key_id=f"key-{tenant}",
        model="m",
        prompt_tokens=PROMPT,
        max_completion_tokens=COMPLETION,
    )


def settle_request(tenant: str, request_id: str) -> quota_pb2.SettleRequest:
    used = {"prompt_tokens": PROMPT, "completion_tokens": COMPLETION, "started": True, "model": "m"}
    return quota_pb2.SettleRequest(request_id=request_id, tenant_id=tenant, **used)


@asynccontextmanager
async def session(channel: grpc.aio.Channel, name: str) -> AsyncIterator[Session]:
    each = Session(channel, name)
    async with background(each.client.run(), name):
        await each.client.wait_connected()
        yield each


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


async def measure(address: str, redis_url: str) -> dict[str, float]:
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
        for _ in range(ROUNDS):
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


def storm(address: str, name: str, log: Path, victim: bool, together: Barrier) -> None:
    """One process of callers, which begins with all others. It writes down each admission, release and refusal at once.

    A victim never releases.
    """
    configure_logs("quota", "bench", "error")
    tenants = [tenant for tenant in policies().tenants if tenant != "free"]

    async def run() -> None:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(sign: str, tenant: str, asked: float = 0.0) -> None:
            os.write(written, f"{sign} {tenant} {time.time():.6f} {asked:.6f}\n".encode())

        async def caller(number: int) -> None:
            for turn in itertools.count(number):
                if time.time() >= ends:
                    return
                tenant, request_id = tenants[turn % len(tenants)], f"{random.getrandbits(128):032x}"
                asked = time.time()
                if await each.reserve(tenant, request_id):
                    note("!", tenant)
                    await asyncio.sleep(RETRY_S)
                    continue
                note("+", tenant, asked)
                await asyncio.sleep(STORM_S if victim else random.uniform(0, 2 * HOLD_S))
                note("-", tenant)
                await each.settle(tenant, request_id)

        async with connect(address, caller=name) as channel, session(channel, name) as each:
            await asyncio.to_thread(together.wait)
            ends = time.time() + STORM_S
            await asyncio.gather(*(caller(number) for number in range(CALLERS_EACH)))

    uvloop.run(run())


async def overrun(address: str, folder: Path) -> dict[str, Any]:
    """Returns the figures of the second part."""
    spawn = multiprocessing.get_context("spawn")
    children, together = [], spawn.Barrier(PROCESSES + 1)
    for number in range(PROCESSES):
        log, name = folder / f"{number}.log", f"router-{number}"
        children.append(spawn.Process(target=storm, args=(address, name, log, number < VICTIMS, together)))
        children[-1].start()
    async with connect(address, caller="bench") as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)

        async def used(tenant: str) -> dict[tuple[str, str], tuple[int, int]]:
            request = quota_pb2.PeekRequest(tenant_id=tenant, key_id=f"key-{tenant}", model="m")
            states = (await stub.Peek(request)).limits
            return {(state.subject, state.limit): (state.used, state.value) for state in states}

        at_once = "concurrent_requests"
        most_at_once, killed_at = 0, 0.0
        await asyncio.to_thread(together.wait)
        began = time.time()
        while any(child.is_alive() for child in children):
            ((held, _),) = (await used(tenant_id(at_once))).values()
            most_at_once = max(most_at_once, held)
            if not killed_at and time.time() - began > KILL_AFTER_S:
                for child in children[:VICTIMS]:
                    child.kill()
                killed_at = time.time()
            await asyncio.sleep(0.1)
        shown = {tenant: await used(tenant) for tenant in policies().tenants if tenant != "free"}
        await asyncio.sleep(max(0.0, killed_at + ALL_GIVEN_BACK_S - time.time()))
        leaked = 0
        for tenant in policies().tenants:
            listed = await stub.ListReservations(quota_pb2.ListReservationsRequest(tenant_id=tenant, page_size=1_000))
            leaked += sum(state.state == "held" for state in listed.reservations)
        ((held, _),) = (await used(tenant_id(at_once))).values()
    return tally(folder, shown, most_at_once, max(leaked, held))


def tally(folder: Path, shown: dict[str, Any], most_at_once: int, leaked: int) -> dict[str, Any]:
    """Returns what callers and counters say together; overshoot in the unit of its limit."""
    lines = [line.split() for log in folder.iterdir() for line in log.read_text().splitlines()]
    times, first_asked = defaultdict(list), defaultdict(lambda: float("inf"))
    refused, overshoot, shares = Counter(), {}, {}
    for sign, tenant, at, asked in sorted(lines, key=lambda line: float(line[2])):
        times[sign, tenant].append(float(at))
        if sign == "+":
            first_asked[tenant] = min(first_asked[tenant], float(asked))
        refused[tenant] += sign == "!"
    for tenant, states in shown.items():
        admitted = times["+", tenant]
        (((_, limit), (used, value)),) = states.items()
        if limit == "requests_per_second":
            # All were decided between the first question and the last answer; from the first answer on, it is all used.
            most, least = (value * (1 + admitted[-1] - since) for since in (first_asked[tenant], admitted[0]))
            overshoot[tenant], shares[tenant] = max(0, len(admitted) - int(most)), len(admitted) / least
        elif limit == "concurrent_requests":
            steps = sorted([(at, 1) for at in admitted] + [(at, -1) for at in times["-", tenant]])
            together = max(itertools.accumulate(step for _, step in steps))
            overshoot[tenant], shares[tenant] = max(0, together - value, most_at_once - value), most_at_once / value
        else:
            by_callers = len(admitted) * value // REQUESTS
            overshoot[tenant], shares[tenant] = max(0, by_callers - value, used - value), used / value
    print(f"\n{'limit':<26}{'admitted':>10}{'refused':>10}{'share':>8}{'overshoot':>11}")
    for tenant, share in shares.items():
        print(f"{tenant:<26}{len(times['+', tenant]):>10}{refused[tenant]:>10}{share:>8.3f}{overshoot[tenant]:>11}")
    return {
        "overshoot": sum(overshoot.values()),
        "leaked_slots": leaked,
        "refused": sum(refused.values()),
        "limits_tried": sum(count > 0 for count in refused.values()),
        "admitted_share": round(min(1.0, *shares.values()), 4),
    }


def main() -> None:
    """Measures, and prints what was measured."""
    configure_logs("quota", "bench", "error")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        valkey = ValkeyServer(Path(folder) / "valkey")
        valkey.start()
        ready, told = spawn.Pipe()
        quota = spawn.Process(target=serve, args=(valkey.url, told))
        quota.start()
        try:
            address = ready.recv()
            print(f"{CALLERS} callers; quota, counters and callers all on this machine\n")
            result: dict[str, Any] = uvloop.run(measure(address, valkey.url))
            for name, figure in result.items():
                print(f"{name:<20}{figure:>10}")
            print(
                "\nten processes run into every limit, two die holding; a lease and a sweep later nothing may be held …",
                flush=True,
            )
            logs = Path(folder) / "logs"
            logs.mkdir()
            result |= uvloop.run(overrun(address, logs))
        finally:
            quota.terminate()
            quota.join()
            valkey.stop()
    result |= uvloop.run(administration.measure())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
