"""`make chaos`: kills every kind of process of a mesh under load, again and again, and counts what went wrong.

Two routers, two schedulers, two workers with the simulated engine, six tenants. Clients stream, some leave early, and processes
die by kill -9 at random and at the kill points of the code. The last line is one JSON object; the exit status says whether all
of it is as it should be, and what was not is told above it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop
import yaml

from forebay.killpoints import POINTS, VARIABLE
from forebay.testing.processes import MeshProcesses

from .books import read_books
from .clients import Load
from .killer import Killer
from .lives import Lives
from .plan import KINDS, ROUTERS, SCHEDULERS, TENANTS, WORKERS, Plan, make_plan
from .records import Books
from .referee import FAULTS, Verdict, judge
from .undisturbed import undisturbed_answers

PROVISIONAL_S = 2.0
# So that what dead routers held is settled while one waits for it.
LEASE_S = 3.0
ENVIRONMENT = {
    "FOREBAY_QUOTA_GLOBAL_REQUESTS_PER_SECOND": "0",
    # All schedulers and the store of their lease may be dead at a time, on a machine that is busy with nothing but restarts.
    "FOREBAY_ROUTER_SCHEDULER_WAIT_S": "60",
    "FOREBAY_QUOTA_LEASE_SECONDS": str(LEASE_S),
    # How long quota waits for the usage of what it never heard of again.
    "FOREBAY_QUOTA_PROVISIONAL_SECONDS": "10",
    "FOREBAY_METERING_PROVISIONAL_SECONDS": str(PROVISIONAL_S),
}
UNLIMITED = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000, "concurrent_requests": 1_000}
LOAD_WITHIN_S = 270.0
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
    environment = {**ENVIRONMENT, VARIABLE: str(points)}
    with MeshProcesses(
        directory / "data",
        routers=len(ROUTERS),
        schedulers=len(SCHEDULERS),
        workers=len(WORKERS),
        tenants=tenants,
        environment=environment,
    ) as mesh:
        verdict: Verdict = uvloop.run(_disturb(mesh, plan, points, concurrency, load_within_s, say))
    return verdict


async def _disturb(
    mesh: MeshProcesses, plan: Plan, points: Path, concurrency: int, load_within_s: float, say: Callable[[str], None]
) -> Verdict:
    answers = await undisturbed_answers(plan.asks)
    lives = Lives(mesh)
    load = Load(plan, answers, mesh, lives)
    killer = Killer(plan, lives, points, lambda: load.begun)
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(lives.watch()), group.create_task(_report(load, lives, say))]
        try:
            async with asyncio.timeout(load_within_s):
                await asyncio.gather(load.run(concurrency, lambda: killer.horizon), killer.run())
        except TimeoutError:
            say(f"the load did not end within {load_within_s:g} s")
        say("all asked; waiting until the books are closed")

        async def verdict() -> Verdict:
            return judge(load.tries, answers, lives.all, await _read(mesh), killer.missed)

        end = time.monotonic() + QUIET_WITHIN_S
        while not (await verdict()).books_closed and time.monotonic() < end:
            await asyncio.sleep(1.0)
        # What is late may still be wrong.
        await asyncio.sleep(PROVISIONAL_S + 1.0)
        last = await verdict()
        for task in beside:
            task.cancel()
    return last


async def _read(mesh: MeshProcesses) -> Books:
    """Returns the books, and while the mesh is not whole, those of a mesh that has written nothing."""
    try:
        return await read_books(mesh, TENANTS)
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
    parser.add_argument("--seed", type=int, default=1, help="decides everything (default 1)")
    parser.add_argument("--concurrency", type=int, default=28, help="requests at a time (default 28)")
    parser.add_argument(
        "--keep", type=Path, help="a new directory to run in and to keep; otherwise kept only if something is wrong"
    )
    given = parser.parse_args(arguments)
    directory = given.keep or Path(tempfile.mkdtemp(prefix="forebay-chaos-"))
    plan = make_plan(given.seed, given.requests, given.kills, sorted(POINTS))
    print(f"seed {given.seed}: {len(plan.asks)} requests, {len(plan.disruptions)} disruptions", flush=True)
    verdict = run_chaos(directory, plan, given.concurrency, LOAD_WITHIN_S, lambda line: print(line, flush=True))
    targets = Targets(completed=given.requests * 6 // 10, continued=given.requests // 20, kills_min=min(3, given.kills))
    short = shortfalls(verdict, targets)
    print("\n" + table(verdict) + "\n")
    for line in short:
        print(line)
    if short:
        print(f"the logs are in {directory / 'data' / 'logs'}")
    elif given.keep is None:
        shutil.rmtree(directory)
    print(json.dumps(verdict.figures()))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
