"""`forebay simulate`: a workload on a simulated engine, scheduled by the product's own core or by others."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from forebay.cli.figures import duration
from forebay.cli.terminal import terminal
from forebay.errors import Code, MeshError
from forebay.quota.domain.plans import Plan
from forebay.quota.file_schema import PlansFile
from forebay.quota.policy_files import SHIPPED_PLANS, plans_of
from forebay.simulator.engine import faster
from forebay.simulator.loop import TOO_LARGE, Outcome, Setting, Simulation
from forebay.simulator.measures import fairness, first_token_seconds, quantiles, tokens_per_second
from forebay.simulator.quota_admission import QuotaAdmission
from forebay.simulator.report import ClientReport, Report, report
from forebay.simulator.scenarios import SCENARIOS, Scenario, four_tenants
from forebay.simulator.schedulers import FOREBAY, SCHEDULERS
from forebay.simulator.workload import read_csv
from forebay.yaml_files.document import Document
from forebay.yaml_files.shape import check

FOUR_TENANTS = "four-tenants"
MAX_ROWS = 30
"""Clients that the table shows; the rest are summed up in one line."""
ROOMY = 100
"""Columns of a terminal from which on columns of tables stand further apart."""
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be simulated; None keeps what the scenario has.

    Attributes:
        scenario: its name; not looked at when there is a trace.
        trace: a CSV file in its place.
        schedulers: their names.
        seed: of all that is left to chance.
        seconds: the span in which requests come.
        workers, kv_tokens, max_model_len, speed, delay_ms, max_tokens: of the engines and what surrounds them; speed is in A10Gs.
        plots: where plots are written; None for none.
        as_json: whether one JSON object is printed for each scheduler, and nothing else.
    """

    scenario: str
    trace: Path | None
    schedulers: Sequence[str]
    seed: int
    seconds: float | None
    workers: int | None
    kv_tokens: int | None
    max_model_len: int | None
    speed: float | None
    delay_ms: float | None
    max_tokens: int | None
    plots: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One scheduler's run."""

    scheduler: str
    outcome: Outcome
    report: Report


def simulate(options: Options) -> None:
    """Runs every scheduler on the same workload, prints what came of it and writes the plots.

    One run is told client by client, the product's own if it is among them; of several the rest is laid side by side.

    Raises:
        MeshError: the trace or the directory of the plots cannot be used, or there is no matplotlib for them.
    """
    draw = _plotting(options.plots) if options.plots else None
    scenario = _scenario(options)
    console = terminal()
    progress = Console(stderr=True, highlight=False)
    runs = []
    for name in options.schedulers:
        dispatcher = SCHEDULERS[name](scenario)
        admission = QuotaAdmission(scenario.policies)
        with _shown(progress, name, len(scenario.arrivals)) as tell:
            outcome = Simulation(
                scenario.arrivals, dispatcher, scenario.setting, admission=admission, progress=tell
            ).run()
        runs.append(Run(name, outcome, report(scenario, outcome)))
    if options.as_json:
        for run in runs:
            print(json.dumps(_json(scenario, run)))
    else:
        _print_run(console, scenario, _own(runs))
        if len(runs) > 1:
            console.print("", _comparison(console, scenario, runs))
    if draw is not None:
        for file in draw(scenario, runs):
            progress.print(f"wrote {escape(str(file))}")


def _scenario(options: Options) -> Scenario:
    if options.trace is not None:
        scenario = Scenario(read_csv(options.trace))
        if options.seconds is not None:
            scenario = replace(scenario, arrivals=[one for one in scenario.arrivals if one.at < options.seconds])
    else:
        make = _four_tenants if options.scenario == FOUR_TENANTS else SCENARIOS[options.scenario]
        scenario = make(options.seed) if options.seconds is None else make(options.seed, options.seconds)
    if not scenario.arrivals:
        raise MeshError(Code.INVALID_ARGUMENT, "NO_REQUESTS", "no request comes in that time; simulate more seconds")
    return replace(scenario, setting=_setting(options, scenario.setting))


def _four_tenants(seed: int, seconds: float = 180.0) -> Scenario:
    return four_tenants(seed, _shipped_plans(), seconds)


def _shipped_plans() -> dict[str, Plan]:
    file = check(Document.read(SHIPPED_PLANS), PlansFile)
    assert file is not None
    return plans_of(file)


def _setting(options: Options, setting: Setting) -> Setting:
    shape = setting.shape
    if options.kv_tokens is not None:
        shape = replace(shape, kv_tokens=options.kv_tokens)
    if options.max_model_len is not None:
        shape = replace(shape, max_model_len=options.max_model_len)
    if options.speed is not None:
        shape = replace(shape, cost=faster(type(setting.shape)().cost, options.speed))
    return Setting(
        shape=shape,
        workers=options.workers or setting.workers,
        delay_s=setting.delay_s if options.delay_ms is None else options.delay_ms / 1000,
        max_tokens=options.max_tokens or setting.max_tokens,
        until_s=setting.until_s,
    )


@contextmanager
def _shown(console: Console, name: str, requests: int) -> Iterator[Callable[[float, int], None]]:
    """Shows how far a run is: a bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[at]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=requests, at="")
            yield lambda now, ended: bar.update(task, completed=ended, at=f"{now:,.0f} s simulated")
        return
    printed = time.monotonic()

    def tell(now: float, ended: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= _LINE_EVERY_S:
            printed = time.monotonic()
            console.print(f"{name}: {ended:,} of {requests:,} requests, {now:,.0f} s simulated", markup=False)

    yield tell


def _own(runs: Sequence[Run]) -> Run:
    """Returns the run that is shown client by client: the product's own, or else the first."""
    return next((run for run in runs if run.scheduler == FOREBAY), runs[0])


def _print_run(console: Console, scenario: Scenario, run: Run) -> None:
    outcome, clients = run.outcome, run.report.clients
    paid = any(client.cost_nano_usd is not None for client in clients)
    left = sum(one.finished_at is None and not one.refusal for one in outcome.served)
    cut = f", then cut with {left:,} requests not served to their end" if left else ""
    console.print(f"[bold]{run.scheduler}[/], {outcome.ended_at:,.0f} s simulated{cut}\n")
    table = _table(console, "client", "attempted", "accepted", "tokens", "first token p50", "p99", "owed", "received")
    if paid:
        table.add_column("cost", justify="right")
    for client in clients[:MAX_ROWS]:
        table.add_row(*_row(client), *([f"${(client.cost_nano_usd or 0) / 1e9:,.4f}"] if paid else []))
    console.print(table)
    if rest := clients[MAX_ROWS:]:
        console.print(
            f"… and {len(rest):,} clients more, with {sum(client.received for client in rest):.1%} of the service"
        )
    if any(client.refused for client in clients):
        console.print("", _refusals(console, clients))
    if any(TOO_LARGE in client.refused for client in clients):
        console.print(
            f"too large: more than {scenario.setting.most_tokens:,} tokens, prompt and max_tokens together; "
            f"see --max-model-len and --kv-tokens"
        )
    busy, full = _use(outcome)
    console.print(
        f"\n{tokens_per_second(outcome):,.0f} tok/s, engines {busy:.0%} busy and their KV {full:.0%} full, "
        f"{outcome.preemptions:,} preempted, {outcome.evictions:,} evicted\n"
        f"Jain's index of received over owed {run.report.jain:.3f}"
    )


def _use(outcome: Outcome) -> tuple[float, float]:
    """Returns the share of the time in which engines were at work, and the mean share of their KV cache in use."""
    seconds = outcome.ended_at or 1.0
    return sum(outcome.busy) / seconds, sum(outcome.kv) / seconds


def _row(client: ClientReport) -> list[str]:
    return [
        escape(client.client),
        f"{client.attempted:,}",
        f"{client.accepted:,}",
        f"{client.tokens:,}",
        duration(client.first_token.p50 or None),
        duration(client.first_token.p99 or None),
        f"{client.owed:.1%}",
        f"{client.received:.1%}",
    ]


def _refusals(console: Console, clients: Sequence[ClientReport]) -> Table:
    """Returns how often clients were refused for which reason; of many, those that were most often."""
    refused = sorted((client for client in clients if client.refused), key=lambda client: -client.refused.total())
    reasons = [reason for reason, _ in sum((client.refused for client in refused), Counter[str]()).most_common()]
    table = _table(console, "refused", *(reason.replace("_", " ") for reason in reasons))
    for client in refused[:MAX_ROWS]:
        counts = (client.refused[reason] for reason in reasons)
        table.add_row(escape(client.client), *(f"{count:,}" if count else "–" for count in counts))
    return table


def _comparison(console: Console, scenario: Scenario, runs: Sequence[Run]) -> Table:
    columns = ("max diff", "avg diff", "tok/s", "preempted", "evicted", "first token p50", "p99", "Jain")
    table = _table(console, "scheduler", *columns)
    quiet = runs[0].report.quiet
    whose = f"{escape(quiet[0])}, which asks" if len(quiet) == 1 else f"the {len(quiet):,} clients that ask"
    table.caption = f"first tokens are those of {whose} least often"
    table.caption_justify = "left"
    for run in runs:
        difference = fairness(run.outcome, scenario.standings)
        ttft = quantiles(first_token_seconds(run.outcome, *quiet))
        table.add_row(
            run.scheduler,
            *(f"{each:,.0f}" if each else "–" for each in (difference.max_diff, difference.avg_diff)),
            f"{tokens_per_second(run.outcome):,.0f}",
            f"{run.outcome.preemptions:,}",
            f"{run.outcome.evictions:,}",
            duration(ttft.p50 or None),
            duration(ttft.p99 or None),
            f"{run.report.jain:.3f}",
        )
    return table


def _table(console: Console, first: str, *columns: str) -> Table:
    """Returns a table of figures that a terminal of 80 columns holds."""
    roomy = console.width >= ROOMY
    table = Table(box=None, pad_edge=False, collapse_padding=not roomy, header_style="dim")
    table.add_column(first, no_wrap=True, max_width=40 if roomy else 20)
    for column in columns:
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    return table


def _json(scenario: Scenario, run: Run) -> dict[str, object]:
    difference = fairness(run.outcome, scenario.standings)
    busy, full = _use(run.outcome)
    return {
        "scheduler": run.scheduler,
        "seconds": round(run.outcome.ended_at, 3),
        "tok_s": round(tokens_per_second(run.outcome), 1),
        "max_diff": round(difference.max_diff, 1),
        "avg_diff": round(difference.avg_diff, 1),
        "preemptions": run.outcome.preemptions,
        "evictions": run.outcome.evictions,
        "busy": round(busy, 4),
        "kv": round(full, 4),
        "jain": round(run.report.jain, 4),
        "clients": [
            {
                "client": client.client,
                "attempted": client.attempted,
                "accepted": client.accepted,
                "refused": dict(client.refused),
                "tokens": client.tokens,
                "cost_nano_usd": client.cost_nano_usd,
                "owed": round(client.owed, 4),
                "received": round(client.received, 4),
                "first_token_p50_s": round(client.first_token.p50, 4) or None,
                "first_token_p99_s": round(client.first_token.p99, 4) or None,
            }
            for client in run.report.clients
        ],
    }


def _plotting(directory: Path) -> Callable[[Scenario, Sequence[Run]], list[Path]]:
    """Returns what draws, so that what is missing is known before the simulation and not after it."""
    try:
        from forebay.simulator import plots
    except ImportError:
        raise MeshError(
            Code.FAILED_PRECONDITION, "NO_MATPLOTLIB", "plots need matplotlib: pip install 'forebay[plots]'"
        ) from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise _not_written(directory, error) from None

    def draw(scenario: Scenario, runs: Sequence[Run]) -> list[Path]:
        own = _own(runs)
        outcomes = {run.scheduler: run.outcome for run in runs}
        try:
            return plots.draw(directory, scenario, outcomes, own.scheduler, own.report)
        except OSError as error:
            raise _not_written(directory, error) from None

    return draw


def _not_written(directory: Path, error: OSError) -> MeshError:
    message = f"no plots can be written to {directory}: {error.strerror}; name another directory"
    return MeshError(Code.FAILED_PRECONDITION, "BAD_DIRECTORY", message)
