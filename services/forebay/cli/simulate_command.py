"""`forebay simulate`: its arguments."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.parameters import Json, refuse_beside


class ScenarioName(enum.StrEnum):
    """A generated workload. The names are written here too, so that `--help` does not load the simulator."""

    FOUR_TENANTS = "four-tenants"
    CHAT = "chat"
    VICTIM = "victim"
    WEIGHTS = "weights"
    ASYMMETRIC = "asymmetric"
    ADVERSARY = "adversary"


class SchedulerName(enum.StrEnum):
    """A scheduler that can be simulated, in the order in which `--compare` runs them."""

    PUSH_EVERYTHING = "push-everything"
    IN_FLIGHT_64 = "64-in-flight"
    FCFS = "fcfs"
    ROUND_ROBIN = "round-robin"
    INPUT_DRR = "input-drr"
    LEAST_SERVED = "least-served"
    VTC = "vtc"
    FOREBAY = "forebay"


def simulate_command(
    context: typer.Context,
    scenario: Annotated[
        ScenarioName, typer.Argument(metavar="SCENARIO", help="Who asks for what; see above. Not with --trace.")
    ] = ScenarioName.FOUR_TENANTS,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV of requests with the columns t, client, prompt_len, output_len."),
    ] = None,
    scheduler: Annotated[
        list[SchedulerName] | None,
        typer.Option(metavar="NAME", help="Who decides; see above. Repeat it to compare several."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All schedulers, one after the other.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same run.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Requests come for so long; the scenario's own by default.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="How many engines.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=2_048, max=10**9, help="KV cache of each engine, in tokens.")
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(min=2, max=10**9, help="The most tokens of a request, prompt and answer; 2,048 by default."),
    ] = None,
    speed: Annotated[float | None, typer.Option(min=0.01, max=1_000, help="Of each engine; 1 is an A10G.")] = None,
    delay_ms: Annotated[
        float | None, typer.Option(min=0, max=60_000, help="Word from and to an engine takes so long.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="What a request asks for unless it says itself.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots there, as PNGs.")] = None,
    as_json: Json = False,
) -> None:
    """Simulates a workload: the scheduler's own core, or others, above a model of vLLM.

    Scenarios:

    \b
    four-tenants  tenants on four plans that ask for more than those allow
    chat          27 clients of very different size, somewhat too many
    victim        a quiet client beside one that asks for twice what there is
    weights       four that always want more, with weights 1, 2, 3 and 4
    asymmetric    long answers to short prompts, and the other way round
    adversary     the worst for the bound on unfairness

    Schedulers:

    \b
    forebay          the product's own core; the default
    vtc              virtual token counters (OSDI '24)
    least-served     least attained service
    input-drr        deficit round robin over tokens of prompts
    round-robin      a request of each client in turn
    fcfs             first come, first served
    64-in-flight     virtual token counters, at most 64 requests on an engine
    push-everything  all goes to the engine as it comes

    Examples:

    \b
    forebay simulate                       who is let in, served, and pays what
    forebay simulate chat --compare        every scheduler on the same requests
    forebay simulate victim --scheduler fcfs --scheduler forebay --plots plots
    forebay simulate --trace day.csv --workers 4    would four carry this day?
    """
    from forebay.cli import simulate

    if trace is not None:
        refuse_beside(context, "--trace", "scenario", "seed")
    if compare:
        refuse_beside(context, "--compare", "scheduler")
    chosen = list(SchedulerName) if compare else scheduler or [SchedulerName.FOREBAY]
    names = [each.value for each in chosen]
    simulate.simulate(
        simulate.Options(
            scenario=scenario.value, trace=trace, schedulers=list(dict.fromkeys(names)), seed=seed, seconds=seconds,
            workers=workers, kv_tokens=kv_tokens, max_model_len=max_model_len, speed=speed, delay_ms=delay_ms,
            max_tokens=max_tokens, plots=plots, as_json=as_json,
        )
    )  # fmt: skip
