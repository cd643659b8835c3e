"""`make chaos`: strikes every kind of process of a mesh under load, again and again, and counts what went wrong.

Two routers, two schedulers, two workers with the simulated engine, six tenants. Clients stream, some leave early, some are in a
hurry. Processes die by kill -9 at random and at the kill points of the code, and are paused; clocks step forward and back; the
disk is full for a time; Redis loses keys. The last line is one JSON object; the exit status says whether all of it is as it
should be, and what was not is told above it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import uvloop
import yaml

from forebay.killpoints import POINTS, VARIABLE
from forebay.testing.movable_clock import MovableClock
from forebay.testing.processes import MeshProcesses

from .books import read_books
from .clients import Load
from .disk import SmallDisk
from .killer import Killer, Tools
from .lives import Lives
from .plan import (
    KINDS,
    LEASE_S,
    NANO_USD_PER_MILLION,
    ROUTERS,
    SCHEDULERS,
    TENANTS,
    WORKERS,
    Plan,
    Strike,
    make_plan,
    other_strikes,
)
from .pools import PoolWatch
from .records import Books
from .referee import FAULTS, Seen, Verdict, judge
from .undisturbed import undisturbed_answers

PROVISIONAL_S = 2.0
ENVIRONMENT = {
    # More than there are, so that permits are asked for and nobody is refused.
    "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "100000",
    # All schedulers and the store of their lease may be dead at a time, on a machine that is busy with nothing but restarts.
    "FOREBAY_ROUTER_SCHEDULER_WAIT_S": "60",
    "FOREBAY_QUOTA_LEASE_SECONDS": str(LEASE_S),
    # How long quota waits for the usage of what it never heard of again.
    "FOREBAY_QUOTA_PROVISIONAL_SECONDS": "10",
    "FOREBAY_METERING_PROVISIONAL_SECONDS": str(PROVISIONAL_S),
}
UNLIMITED = {
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1_000_000_000,
    "concurrent_requests": 1_000,
    "tokens_per_day": 1_000_000_000_000,
    "monthly_budget_usd": 1_000_000,
}
# Clocks of the mesh may be off by so much, and a day be over early or late.
CLOCKS_OFF = timedelta(hours=1)
LOAD_WITHIN_S = 600.0
QUIET_WITHIN_S = 150.0
NOTES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Targets:
    """What a run must at least show."""

    completed: int
    continued: int
    kills_min: int


def run_chaos(
    directory: Path, plan: Plan, concurrency: int, load_within_s: float, say: Callable[[str], None]
) -> Verdict:
    """Runs a plan on a new mesh; returns the verdict.

    Args:
        directory: an empty one, or none yet; the mesh's data is to be in `data` there.
        plan: what to do.
        concurrency: how many requests run at a time.
        load_within_s: bound of the load's time.
        say: told of the progress.
    """
    points = directory / "killpoints"
    points.mkdir(parents=True)
    tenants = directory / "tenants.yaml"
    tenants.write_text(
        yaml.safe_dump({"tenants": {tenant: {"plan": p, "limits": UNLIMITED} for tenant, p in TENANTS.items()}})
    )
    prices = directory / "prices.yaml"
    prices.write_text(
        yaml.safe_dump({"prices": [{"subject": "default", "nano_usd_per_million": NANO_USD_PER_MILLION}]})
    )
    clock = MovableClock(directory / "clock")
    environment = {**ENVIRONMENT, VARIABLE: str(points), "FOREBAY_METERING_PRICES_FILE": str(prices)}
    with SmallDisk(directory / "data") as disk:
        if not disk.mounted:
            say("this is not root: instead of a full disk there is a bound on the files of every process")
        try:
            with MeshProcesses(
                directory / "data",
                routers=len(ROUTERS),
                schedulers=len(SCHEDULERS),
                workers=len(WORKERS),
                tenants=tenants,
                environment={**environment, **clock.environment},
                log=directory / "up.log",
            ) as mesh:
                tools = Tools(points, clock, disk, mesh.state()["processes"]["valkey"]["address"])
                verdict: Verdict = uvloop.run(_disturb(mesh, plan, tools, concurrency, load_within_s, say))
                return verdict
        finally:
            if (logs := directory / "data" / "logs").exists():
                shutil.copytree(logs, directory / "logs")


async def _disturb(
    mesh: MeshProcesses, plan: Plan, tools: Tools, concurrency: int, load_within_s: float, say: Callable[[str], None]
) -> Verdict:
    began = datetime.now(UTC)
    answers = await undisturbed_answers(plan.asks)
    lives, pools = Lives(mesh), PoolWatch(mesh)
    load = Load(plan, answers, mesh, lives)
    killer = Killer(plan, lives, tools, lambda: load.begun, say)
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(each) for each in (lives.watch(), pools.watch(), _report(load, lives, say))]
        try:
            async with asyncio.timeout(load_within_s):
                await asyncio.gather(load.run(concurrency, lambda: killer.horizon), killer.run())
        except TimeoutError:
            say(f"the load did not end within {load_within_s:g} s")
        say("all asked; waiting until the books are closed")

        async def verdict() -> Verdict:
            seen = Seen(lives.all, killer.struck, pools.samples, killer.missed, plan.disruptions)
            return judge(load.tries, answers, seen, await _read(mesh, began))

        end = time.monotonic() + QUIET_WITHIN_S
        while not (await verdict()).books_closed and time.monotonic() < end:
            await asyncio.sleep(1.0)
        # What is late may still be wrong.
        await asyncio.sleep(PROVISIONAL_S + 1.0)
        last = await verdict()
        for task in beside:
            task.cancel()
    return last


async def _read(mesh: MeshProcesses, began: datetime) -> Books:
    """Returns the books, and while the mesh is not whole, those of a mesh that has written nothing.

    Without budgets, when for some process or other the day may not be the one that it was when the run began.
    """
    try:
        books = await read_books(mesh, TENANTS)
        one_day = (began - CLOCKS_OFF).date() == (datetime.now(UTC) + CLOCKS_OFF).date()
        return books if one_day else replace(books, budgets={})
    except grpc.aio.AioRpcError as error:
        return Books(open_reservations=(f"the books cannot be read: {error.code().name} {error.details()}",))


async def _report(load: Load, lives: Lives, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(10.0)
        deaths = sum(life.died is not None for life in lives.all)
        say(f"{time.monotonic() - began:4.0f} s {load.begun:5} begun {len(load.tries):5} calls {deaths:4} deaths")


def table(verdict: Verdict) -> str:
    """Returns the figures for people, and of each fault the first cases."""
    lines = [f"{'kill -9 of':<22}" + "".join(f"{kind:>11}" for kind in KINDS)]
    lines += [f"{'':<22}" + "".join(f"{verdict.kills[kind]:>11}" for kind in KINDS), ""]
    for name, value in verdict.figures().items():
        lines.append(f"{name:<22}{value:>11}")
        notes = verdict.notes[name] if name in FAULTS else []
        lines += [f"    {note}" for note in notes[:NOTES_SHOWN]]
        lines += [f"    and {len(notes) - NOTES_SHOWN} more"] * (len(notes) > NOTES_SHOWN)
    lines += ["", "calls that ended with an error:"] + [
        f"{count:>11}  {name}" for name, count in verdict.errors.most_common()
    ]
    return "\n".join(lines)


def shortfalls(verdict: Verdict, targets: Targets) -> list[str]:
    """Returns what is not as it should be, in words; empty for a good run."""
    figures: Mapping[str, int] = verdict.figures()
    least = {"completed": targets.completed, "continued": targets.continued, "kills_min": targets.kills_min}
    short = [f"{name} is {figures[name]}, less than {value}" for name, value in least.items() if figures[name] < value]
    return short + [f"{name} is {figures[name]}, not 0" for name in FAULTS if figures[name]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs by command-line arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000, help="streaming requests (default 1000)")
    parser.add_argument("--kills", type=int, default=4, help="random kills of each kind of process (default 4)")
    strikes = [strike.value for strike in Strike]
    parser.add_argument(
        "--only", choices=strikes, nargs="+", default=strikes, help="the kinds of strikes (default all)"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides everything (default 1)")
    parser.add_argument("--concurrency", type=int, default=28, help="requests at a time (default 28)")
    parser.add_argument(
        "--keep", type=Path, help="a new directory to run in and to keep; otherwise kept only if something is wrong"
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the mesh is stopped and its disk unmounted
    directory = given.keep or Path(tempfile.mkdtemp(prefix="forebay-chaos-"))
    plan = make_plan(given.seed, given.requests, given.kills, sorted(POINTS), other_strikes(given.seed))
    chosen = tuple(disruption for disruption in plan.disruptions if disruption.strike.value in given.only)
    plan = replace(plan, disruptions=chosen)
    print(f"seed {given.seed}: {len(plan.asks)} requests, {len(plan.disruptions)} disruptions", flush=True)
    verdict = run_chaos(directory, plan, given.concurrency, LOAD_WITHIN_S, lambda line: print(line, flush=True))
    targets = Targets(completed=given.requests * 6 // 10, continued=given.requests // 20, kills_min=min(3, given.kills))
    short = shortfalls(verdict, targets)
    print("\n" + table(verdict) + "\n")
    for line in short:
        print(line)
    if short:
        print(f"the logs are in {directory / 'logs'}, the launcher's is {directory / 'up.log'}")
    elif given.keep is None:
        shutil.rmtree(directory)
    print(json.dumps(verdict.figures()))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
