"""The `forebay` command. Each command here only reads its arguments; what it does is in the module beside it."""

from __future__ import annotations

import asyncio
import enum
import re
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from forebay import __version__
from forebay.cli import access, answer, directory, launcher, ledger, pools, simulate
from forebay.cli import administration_commands as commands
from forebay.cli.data_dir import DEFAULT_DATA, DataDir, DataDirError
from forebay.cli.explain import explain
from forebay.cli.mesh_config import PoolPlan
from forebay.cli.operator import Operator
from forebay.cli.supervisor import StartError
from forebay.client import ForebayClient, MeshError, Options, UsageTotal
from forebay.client.messages import to_pb_dimensions
from forebay.simulator.schedulers import FOREBAY, SCHEDULERS

T = TypeVar("T")

app = typer.Typer(
    help="forebay: a multi-tenant LLM inference mesh.", no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
usage = typer.Typer(help="What was used, from the ledger.", no_args_is_help=True)
app.add_typer(usage, name="usage")
app.add_typer(commands.tenants, name="tenants")
app.add_typer(commands.keys, name="keys")
app.add_typer(commands.plans, name="plans")
app.add_typer(commands.audit, name="audit")

Data = Annotated[Path, typer.Option("--data", metavar="DIR", envvar="FOREBAY_DATA", help="The mesh's data directory.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", envvar="FOREBAY_KEY", help="A tenant's key.", show_envvar=True)]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Call with this sample tenant's development key.")]
Router = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A router; that of the mesh in --data by default.")
]
All = Annotated[bool, typer.Option("--all", help="All tenants' rows, as the operator: from metering itself.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


class Engine(enum.StrEnum):
    """Which engine the workers run."""

    VLLM = "vllm"
    SIMULATED = "simulated"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forebay {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    routers: Annotated[int, typer.Option(min=1, max=16, help="How many routers.")] = 1,
    schedulers: Annotated[int, typer.Option(min=1, max=16, help="How many schedulers, of which one leads.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 1,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:WORKERS[:lends]",
            help="A dedicated pool with workers of its own, for tenants whose policy names it; repeat it for more.",
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(envvar="ENGINE", help="What the workers run.")] = Engine.VLLM,
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="wheel:smollm2 (the default for vllm), a directory, or a hub id.")
    ] = None,
    data: Data = DEFAULT_DATA,
    tenants_file: Annotated[
        Path | None,
        typer.Option(
            "--tenants", metavar="FILE", exists=True, dir_okay=False, help="Tenants of a new mesh; a sample by default."
        ),
    ] = None,
    otlp: Annotated[str | None, typer.Option(metavar="URL", help="Send traces here (OTLP/gRPC), not to files.")] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Send a chat for each of three tenants once the mesh is ready.")
    ] = False,
    exit_after_demo: Annotated[bool, typer.Option("--exit-after-demo", help="Stop after --demo.")] = False,
) -> None:
    """Starts a whole mesh on this machine and keeps it running until Ctrl-C."""
    if exit_after_demo and not demo:
        raise typer.BadParameter("goes together with --demo", param_hint="--exit-after-demo")
    options = launcher.LaunchOptions(
        routers=routers, schedulers=schedulers, workers=workers, engine=engine.value, model=model, tenants_file=tenants_file,
        otlp_endpoint=otlp, demo=demo, serve=not exit_after_demo, pools=tuple(_pool(text) for text in pool or ()),
    )  # fmt: skip
    _run(launcher.launch(DataDir(data), options))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")],
    key: Key = None,
    tenant: Tenant = None,
    router: Router = None,
    model: Annotated[str | None, typer.Option(help="The model, where there is more than one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Streams an answer."""
    options: Options = {}
    if model is not None:
        options["model"] = model
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    address, secret = _access(DataDir(data), router, key, tenant)
    _run(answer.generate(address, secret, sys.stdin.read() if prompt == "-" else prompt, system, options))


@usage.command("tail")
def usage_tail(
    key: Key = None,
    tenant: Tenant = None,
    everyone: All = False,
    start: Annotated[str, typer.Option("--from", metavar="CURSOR", help="beginning, now, or a cursor.")] = "beginning",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for what is yet to come.")] = True,
    router: Router = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Follows the usage stream."""
    cursor = "" if start == "beginning" else start
    if everyone:
        pages = ledger.operator_pages(Operator.load(DataDir(data)), follow)
        _run(ledger.tail(pages, cursor, follow, as_json))
    else:
        address, secret = _access(DataDir(data), router, key, tenant)
        _run(_tail_of_tenant(address, secret, cursor, follow, as_json))


@usage.command("sum")
def usage_sum(
    by: Annotated[
        str, typer.Option(help="Dimensions, comma between: tenant, key, model, day, outcome.")
    ] = "tenant,model",
    key: Key = None,
    tenant: Tenant = None,
    everyone: All = False,
    router: Router = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Adds usage up."""
    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    try:
        to_pb_dimensions(dimensions)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--by") from None
    if everyone:
        work = ledger.operator_sum(Operator.load(DataDir(data)), dimensions)
    else:
        work = _sum_of_tenant(*_access(DataDir(data), router, key, tenant), dimensions)
    ledger.print_totals(dimensions, _run(work), as_json)


@app.command()
def status(data: Data = DEFAULT_DATA) -> None:
    """Shows the running mesh; the exit status is 1 when a part of it is not healthy."""
    if not _run(directory.show_status(Operator.load(DataDir(data)))):
        raise typer.Exit(1)


@app.command("pools")
def pools_command(
    pool: Annotated[str, typer.Argument(metavar="[POOL]", help="Only the pools of this name.")] = "",
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again each second, until Ctrl-C.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Shows pools: who waits, how full workers are, what each tenant received and was owed.

    Service is in weighted tokens: an input token counts 1, a cached one 0.1, a generated one 2.
    """
    operator = Operator.load(DataDir(data))
    _run((pools.watch if watch else pools.show)(operator, pool, as_json))


@app.command("simulate")
def simulate_command(
    scenario: Annotated[
        simulate.Name, typer.Argument(metavar="SCENARIO", help="Who asks for what; see above. Not with --trace.")
    ] = simulate.DEFAULT,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV of requests with the columns t, client, prompt_len, output_len."),
    ] = None,
    scheduler: Annotated[
        list[simulate.SchedulerName] | None,
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
    names = list(SCHEDULERS) if compare else [each.value for each in scheduler or ()] or [FOREBAY]
    simulate.simulate(
        simulate.Options(
            scenario=scenario.value, trace=trace, schedulers=list(dict.fromkeys(names)), seed=seed, seconds=seconds,
            workers=workers, kv_tokens=kv_tokens, max_model_len=max_model_len, speed=speed, delay_ms=delay_ms,
            max_tokens=max_tokens, plots=plots, as_json=as_json,
        )
    )  # fmt: skip


def _pool(text: str) -> PoolPlan:
    found = re.fullmatch(r"([a-z0-9-]{1,63}):([1-9][0-9]?)(:lends)?", text)
    if found is None:
        raise typer.BadParameter(f"{text!r}: give it as gold:2, or gold:2:lends", param_hint="--pool")
    return PoolPlan(found[1], int(found[2]), lends=found[3] is not None)


async def _tail_of_tenant(address: str, key: str, cursor: str, follow: bool, as_json: bool) -> None:
    async with ForebayClient(address, key) as client:
        await ledger.tail(ledger.tenant_pages(client, follow), cursor, follow, as_json)


async def _sum_of_tenant(address: str, key: str, by: list[str]) -> list[UsageTotal]:
    async with ForebayClient(address, key) as client:
        return await client.sum_usage(by)


def _access(data: DataDir, router: str | None, key: str | None, tenant: str | None) -> tuple[str, str]:
    """Returns the address and the key to call with."""
    return access.router_address(data, router), access.tenant_key(data, key, tenant)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:  # the usual end of what follows
        raise typer.Exit(130) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command: what cannot be done ends with a sentence and exit status 1, what is asked wrongly with 2."""
    try:
        app(arguments)
    except MeshError as error:
        _fail(explain(error))
    except (DataDirError, StartError) as error:
        _fail(str(error))


def _fail(sentence: str) -> NoReturn:
    typer.secho(f"forebay: {sentence}", err=True, fg="red")
    sys.exit(1)
