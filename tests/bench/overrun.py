"""Whether any limit can be overrun while processes die holding; a part of `make bench-quota`.

Ten processes of 100 callers each run into every kind of limit, and two of them are killed while they hold. What was admitted is
counted by the callers themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import time
from collections import Counter, defaultdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import uvloop
from quota_process import REQUESTS, policies, session, tenant_id

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.rpc.client import connect
from forebay.telemetry.logs import configure_logs

PROCESSES, VICTIMS, CALLERS_EACH, STORM_S, KILL_AFTER_S = 10, 2, 100, 8.0, 3.0
HOLD_S, RETRY_S = 0.05, 0.25
# One lease and one sweep, as the service is configured by default.
ALL_GIVEN_BACK_S = 40.0


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


async def measure(address: str, folder: Path) -> dict[str, Any]:
    """Returns the figures, and prints them by limit."""
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
