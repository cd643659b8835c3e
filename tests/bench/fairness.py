"""Fairness of every scheduler in the simulator: a table, and one line of JSON at the end.

    python tests/bench/fairness.py                          # generated chat traffic, 10 seeds
    python tests/bench/fairness.py --trace trace.csv        # a trace instead; the other parts stay as they are
    python tests/bench/fairness.py --only victim --only forebay     # parts and schedulers, as many as wanted

Parts:
  chat        service difference, throughput and preemptions of 27 clients, or of the trace
  victim      time to first token of 0.15 req/s beside an aggressor of 4 req/s, pooled over the seeds
  asymmetric  service of long answers to short prompts, over that of short answers to long prompts
  weights     four flooding clients 1:2:3:4: the largest relative error of a share, and the gap against law 4's bound
  adversary   the gap that the worst known schedule reaches, against the bound
  bound       random schedules that break the bound
  decision    microseconds of one pick and admission at 10,000 tenants and 64 in flight
  delay       throughput lost when word from and to the engine takes 250 ms instead of 5
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from forebay.cli.explain import explain
from forebay.errors import MeshError
from forebay.simulator import scenarios
from forebay.simulator.bound import Watched
from forebay.simulator.dispatcher import Ask, Report
from forebay.simulator.engine import EngineShape
from forebay.simulator.forebay_dispatcher import ForebayDispatcher
from forebay.simulator.loop import Outcome, Simulation
from forebay.simulator.measures import (
    fairness,
    first_token_seconds,
    owed,
    quantiles,
    service_of,
    tokens_per_second,
)
from forebay.simulator.scenarios import Scenario
from forebay.simulator.schedulers import FOREBAY, SCHEDULERS
from forebay.simulator.workload import read_csv

COMPARED = ("chat", "victim", "asymmetric")  # by every scheduler
OWN = ("weights", "adversary", "bound", "decision", "delay")  # by forebay alone
ALONE = ("decision",)  # timed, so nothing of this runs beside it
SETTLED_S = 60.0  # from when on a flood's shares are taken
SCHEDULES_A_TASK = 100
PLAYS = 7  # of the history in which decisions are timed

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Task:
    part: str
    scheduler: str
    seed: int
    trace: Path | None = None

    def chat(self) -> Scenario:
        return scenarios.chat_of_27(self.seed) if self.trace is None else Scenario(read_csv(self.trace))


def simulate(scheduler: str, scenario: Scenario) -> Outcome:
    return Simulation(scenario.arrivals, SCHEDULERS[scheduler](scenario), scenario.setting).run()


def watched(scheduler: str, scenario: Scenario) -> tuple[Outcome, float]:
    """Returns the largest gap over law 4's bound as well."""
    watch = Watched(SCHEDULERS[scheduler](scenario), scenario.ways)
    outcome = Simulation(scenario.arrivals, watch, scenario.setting).run()
    return outcome, watch.share_of_bound


def chat(task: Task) -> Figures:
    outcome = simulate(task.scheduler, task.chat())
    measured = fairness(outcome)
    return {
        "max_diff": [measured.max_diff],
        "avg_diff": [measured.avg_diff],
        "tok_s": [tokens_per_second(outcome)],
        "preemptions": [outcome.preemptions],
        "evictions": [outcome.evictions],
    }


def victim(task: Task) -> Figures:
    outcome = simulate(task.scheduler, scenarios.victim(task.seed))
    return {"victim_ttft": first_token_seconds(outcome, "victim")}


def asymmetric(task: Task) -> Figures:
    service = service_of(simulate(task.scheduler, scenarios.asymmetric(task.seed)), SETTLED_S)
    return {"asym_ratio": [service["long-out"] / service["long-in"]]}


def weights(task: Task) -> Figures:
    scenario = scenarios.weights(task.seed)
    outcome, gap = watched(task.scheduler, scenario)
    service = service_of(outcome, SETTLED_S)
    due = owed(service, scenario.weights, dict.fromkeys(service, float("inf")))
    error = max(abs(service[client] / due[client] - 1) for client in service)
    _, other = watched(task.scheduler, scenarios.asymmetric(task.seed))
    return {"weighted_error": [error], "accumulated_gap_over_bound": [gap, other]}


def adversary(task: Task) -> Figures:
    return {"adversary_gap_over_bound": [watched(task.scheduler, scenarios.adversary(task.seed))[1]]}


def schedules(task: Task) -> Figures:
    first = task.seed * SCHEDULES_A_TASK
    ratios = [
        watched(task.scheduler, scenarios.random_schedule(seed))[1] for seed in range(first, first + SCHEDULES_A_TASK)
    ]
    return {"bound_violations": [sum(ratio > 1 for ratio in ratios)], "random_gap_over_bound": [max(ratios)]}


def decision(task: Task) -> Figures:
    """Times a tick that decides: one pick among 10,000 waiting tenants, and its admission beside 63 requests in flight.

    In the time are the grant and the batch, too, and the look at who is next and does not fit. Not in it is what the tick
    answers, because the core hears of it before: that one request has ended, that all others have moved on, that a tenant asks.

    One history is played several times, and the least time of each decision counts. The code does the same each time; what is
    left out is what else the machine was doing.
    """
    plays = zip(*(decisions(task.seed) for _ in range(PLAYS)), strict=True)
    return {"decision_us": [min(took) for took in plays]}


def decisions(seed: int) -> list[float]:
    """Plays a history of 2,000 decisions; returns how many microseconds each took."""
    chance = random.Random(seed)
    shape = EngineShape(kv_tokens=100_000, max_num_seqs=64, max_num_batched_tokens=100_000)
    dispatcher = ForebayDispatcher(shape)
    ids = iter(range(1_000_000))

    def ask(tenant: int) -> None:
        dispatcher.submit(Ask(next(ids), str(tenant), chance.randint(16, 512), 512), now)

    now = 0.0
    for tenant in range(10_000):
        ask(tenant)
    in_flight = [start.id for start in dispatcher.tick(now).starts]
    assert len(in_flight) == 64
    took = []
    for _ in range(2_000):
        now += 0.03
        ended = in_flight.pop(chance.randrange(len(in_flight)))
        dispatcher.reported(
            Report(0, progress=[(id, 1) for id in in_flight], finished=[(ended, chance.randint(1, 512))]), now
        )
        ask(chance.randrange(10_000))
        began = time.perf_counter()
        made = dispatcher.core.tick(now)
        took.append((time.perf_counter() - began) * 1e6)
        in_flight += [int(grant.request.key.request_id) for batch in made.batches for grant in batch.grants]
        assert len(in_flight) == 64
    return took


def delay(task: Task) -> Figures:
    near = task.chat()
    far = replace(near, setting=replace(near.setting, delay_s=0.25))
    loss = 1 - tokens_per_second(simulate(task.scheduler, far)) / tokens_per_second(simulate(task.scheduler, near))
    return {"delay_loss": [loss]}


PARTS: dict[str, Callable[[Task], Figures]] = {
    "chat": chat, "victim": victim, "asymmetric": asymmetric, "weights": weights, "adversary": adversary,
    "bound": schedules, "decision": decision, "delay": delay,
}  # fmt: skip


def run(task: Task) -> tuple[Task, Figures]:
    return task, PARTS[task.part](task)


def tasks(parts: Iterable[str], names: Iterable[str], seeds: int, schedules: int, trace: Path | None) -> list[Task]:
    """Returns all that is to be run; what takes no chance is run once."""
    by_chance = {"chat": 1 if trace else seeds, "victim": seeds, "delay": 1 if trace else seeds}
    by_chance["bound"] = -(-schedules // SCHEDULES_A_TASK)
    return [
        Task(part, name, seed, trace)
        for part in parts
        for name in (names if part in COMPARED else (FOREBAY,))
        for seed in range(by_chance.get(part, 1))
    ]


def gather(todo: list[Task], jobs: int) -> dict[str, Figures]:
    """Runs the tasks and returns the figures of each scheduler, pooled over seeds; says how far it is."""
    pooled: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    began = time.monotonic()
    beside = [task for task in todo if task.part not in ALONE]
    alone = [task for task in todo if task.part in ALONE]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        results = itertools.chain(pool.imap_unordered(run, beside), map(run, alone))
        for number, (task, figures) in enumerate(results, 1):
            for name, values in figures.items():
                pooled[task.scheduler][name] += values
            if sys.stderr.isatty():
                print(f"\r{number}/{len(todo)}, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return pooled


def mean(figures: Figures, name: str) -> float:
    return statistics.fmean(figures[name]) if figures.get(name) else float("nan")


def table(pooled: dict[str, Figures]) -> None:
    """Prints a row for each scheduler; figures are means over the seeds, and the victim's are pooled."""
    columns = (
        f"{'max diff':>10}{'avg diff':>10}{'tok/s':>8}{'preempted':>11}{'evicted':>9}{'victim p50':>12}{'p99 s':>8}"
    )
    print(f"{'scheduler':<18}{columns}{'out/in':>8}")
    for name in SCHEDULERS:
        if (figures := pooled.get(name)) is None:
            continue
        ttft = quantiles(figures["victim_ttft"]) if figures.get("victim_ttft") else quantiles([float("nan")])
        row = (
            f"{name:<18}{mean(figures, 'max_diff'):>10.0f}{mean(figures, 'avg_diff'):>10.0f}{mean(figures, 'tok_s'):>8.0f}"
            f"{mean(figures, 'preemptions'):>11.0f}{mean(figures, 'evictions'):>9.0f}{ttft.p50:>12.2f}{ttft.p99:>8.1f}"
            f"{mean(figures, 'asym_ratio'):>8.2f}"
        )
        print(row.replace("nan", "  –"))


def summary(pooled: dict[str, Figures]) -> dict[str, float]:
    """Returns the product's figures, those that were measured."""
    own, result = pooled[FOREBAY], {}
    for name in ("max_diff", "avg_diff"):
        result[name] = mean(own, name)
    if "fcfs" in pooled:
        result["tok_s_ratio_fcfs"] = mean(own, "tok_s") / (mean(pooled["fcfs"], "tok_s") or float("nan"))
    if "push-everything" in pooled:
        pushed = pooled["push-everything"]
        moved = mean(own, "preemptions") + mean(own, "evictions")
        result["preemptions_ratio"] = moved / (mean(pushed, "preemptions") or float("nan"))
        result |= {f"push_{name}": mean(pushed, name) for name in ("max_diff", "tok_s", "preemptions")}
    if own.get("bound_violations"):
        result["bound_violations"] = sum(own["bound_violations"])
        result["random_schedules"] = SCHEDULES_A_TASK * len(own["bound_violations"])
    for name in ("random_gap_over_bound", "accumulated_gap_over_bound", "adversary_gap_over_bound"):
        result[name] = max(own[name], default=float("nan"))
    for name in ("weighted_error", "asym_ratio", "delay_loss"):
        result[name] = mean(own, name)
    if own.get("victim_ttft"):
        ttft = quantiles(own["victim_ttft"])
        result |= {"victim_ttft_p50_s": ttft.p50, "victim_ttft_p99_s": ttft.p99}
    if own.get("decision_us"):
        took = quantiles(own["decision_us"])
        result |= {"decision_us_p50": took.p50, "decision_us_p99": took.p99}
    return {name: round(value, 4) for name, value in result.items() if value == value}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number above 0")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (*COMPARED, *OWN, *SCHEDULERS)
    parser.add_argument(
        "--trace", type=Path, help="t,client,prompt_len,output_len in place of the generated chat traffic"
    )
    parser.add_argument(
        "--only", action="append", choices=choices, metavar="NAME", help="a part or a scheduler; repeatable"
    )
    parser.add_argument("--seeds", type=positive, default=10, help="where there is chance (default 10)")
    parser.add_argument(
        "--schedules", type=positive, default=10_000, help="random schedules against the bound (default 10,000)"
    )
    jobs = multiprocessing.cpu_count()
    parser.add_argument("--jobs", type=positive, default=jobs, help="processes (default: all cores)")
    arguments = parser.parse_args()
    if arguments.trace is not None:
        try:
            read_csv(arguments.trace)
        except MeshError as error:
            sys.exit(explain(error))
    only = arguments.only or []
    parts = [name for name in only if name in PARTS] or [*COMPARED, *OWN]
    names = [name for name in only if name in SCHEDULERS] or list(SCHEDULERS)
    todo = tasks(parts, names, arguments.seeds, arguments.schedules, arguments.trace)
    began = time.monotonic()
    pooled = gather(todo, arguments.jobs)
    source = arguments.trace.name if arguments.trace else f"generated chat traffic, {arguments.seeds} seeds"
    print(f"{source}; one engine of 10,000 KV tokens at an A10G's pace; took {time.monotonic() - began:.0f} s\n")
    if any(name in COMPARED for name in parts):
        table(pooled)
        print()
    print(json.dumps(summary(pooled)))


if __name__ == "__main__":
    main()
