"""The `forebay` command. Each command here only reads its arguments; what it does is in the module beside it.

A command imports what it needs when it runs, so that `--help` and shell completion load neither gRPC nor a service.
"""

from __future__ import annotations

import enum
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from forebay import __version__
from forebay.cli import administration_commands, calling_commands
from forebay.cli.data_dir import DEFAULT_DATA, DataDir, DataDirError
from forebay.cli.failures import WrongUsage
from forebay.cli.parameters import Data, Json, named, quiet_grpc, run
from forebay.cli.simulate_command import simulate_command
from forebay.errors import MeshError

if TYPE_CHECKING:
    from forebay.cli.mesh_config import PoolPlan

app = typer.Typer(
    help="forebay: a multi-tenant LLM inference mesh.", no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


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
    router_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="The first router's port; the next routers have those after it."),
    ] = None,
    port: Annotated[
        list[str] | None, typer.Option(metavar="PROCESS=PORT", help="A process's port, such as quota=7001; repeatable.")
    ] = None,
    drain_s: Annotated[
        float | None,
        typer.Option(
            min=0, max=3_600, help="Seconds that running requests have when their router is stopped; 120 by default."
        ),
    ] = None,
) -> None:
    """Starts a whole mesh on this machine and keeps it running until Ctrl-C."""
    if exit_after_demo and not demo:
        raise typer.BadParameter("goes together with --demo", param_hint="--exit-after-demo")
    plans = tuple(_pool(text) for text in pool or ())
    if len({plan.name for plan in plans}) < len(plans):
        raise typer.BadParameter("each name can be given once", param_hint="--pool")
    from forebay.cli import launcher
    from forebay.cli.mesh_config import ROUTER_DRAIN_S
    from forebay.cli.supervisor import StartError

    options = launcher.LaunchOptions(
        routers=routers, schedulers=schedulers, workers=workers, engine=engine.value, model=model, tenants_file=tenants_file,
        otlp_endpoint=otlp, demo=demo, serve=not exit_after_demo, pools=plans,
        ports=_ports(router_port, routers, port or ()),
        drain_s=ROUTER_DRAIN_S if drain_s is None else drain_s,
    )  # fmt: skip
    try:
        run(launcher.launch(DataDir(data), options))
    except StartError as error:
        _fail(str(error))


app.command()(calling_commands.generate)
app.add_typer(calling_commands.usage, name="usage")


@app.command()
def status(data: Data = DEFAULT_DATA) -> None:
    """Shows the running mesh; the exit status is 1 when a part of it is not healthy."""
    quiet_grpc()
    from forebay.cli import directory
    from forebay.cli.operator import Operator

    if not run(directory.show_status(Operator.load(DataDir(data)))):
        raise typer.Exit(1)


@app.command("pools")
def pools_command(
    pool: Annotated[
        str | None,
        typer.Argument(
            metavar="[POOL]", callback=named, help="Only the pools of this name; shared is what no policy names."
        ),
    ] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again each second, until Ctrl-C.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Shows pools: who waits, how full workers are, what each tenant received and was owed.

    Service is in weighted tokens: an input token counts 1, a cached one 0.1, a generated one 2.
    """
    quiet_grpc()
    from forebay.cli import pools
    from forebay.cli.operator import Operator

    operator = Operator.load(DataDir(data))
    run((pools.watch if watch else pools.show)(operator, pool or "", as_json))


app.command("simulate")(simulate_command)
app.add_typer(administration_commands.tenants, name="tenants")
app.add_typer(administration_commands.keys, name="keys")
app.add_typer(administration_commands.plans, name="plans")
app.add_typer(administration_commands.audit, name="audit")


def _pool(text: str) -> PoolPlan:
    from forebay.cli.mesh_config import PoolPlan

    found = re.fullmatch(r"([a-z0-9-]{1,63}):([1-9][0-9]?)(:lends)?", text)
    if found is None:
        raise typer.BadParameter(f"{text!r}: give it as gold:2, or gold:2:lends", param_hint="--pool")
    if found[1] == "shared":
        raise typer.BadParameter(
            "shared is the pool that every model has; --workers says how large", param_hint="--pool"
        )
    return PoolPlan(found[1], int(found[2]), lends=found[3] is not None)


def _ports(router_port: int | None, routers: int, named: Sequence[str]) -> dict[str, int]:
    """Returns the ports that were asked for, by process."""
    ports = {} if router_port is None else {f"router-{n + 1}": router_port + n for n in range(routers)}
    for text in named:
        name, _, number = text.partition("=")
        if not name or not re.fullmatch("[0-9]{1,5}", number):
            raise typer.BadParameter(f"{text!r}: give it as PROCESS=PORT, such as quota=7001", param_hint="--port")
        if name in ports:
            raise typer.BadParameter(f"{name} is given two ports", param_hint="--port")
        ports[name] = int(number)
    for name, asked in ports.items():
        if not 0 < asked < 65_536:
            raise typer.BadParameter(f"{name}: {asked} is no port; ports are 1 to 65535", param_hint="--port")
        if list(ports.values()).count(asked) > 1:
            raise typer.BadParameter(f"port {asked} is given to two processes", param_hint="--port")
    return ports


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command: what cannot be done ends with a sentence and exit status 1, what is asked wrongly with 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows and says ?, and no traceback
    try:
        _check_text(sys.argv[1:] if arguments is None else arguments)
        app(arguments)
    except WrongUsage as error:
        _fail(str(error), 2)
    except MeshError as error:
        from forebay.cli.explain import explain

        _fail(explain(error))
    except DataDirError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")


def _check_text(arguments: Sequence[str]) -> None:
    """Refuses arguments that no message, file name or terminal can hold.

    Raises:
        WrongUsage: one is not UTF-8, or holds a zero byte.
    """
    for number, argument in enumerate(arguments, 1):
        if "\0" in argument or not _is_utf8(argument):
            raise WrongUsage(f"argument {number} is not UTF-8 text: {argument[:40]!a}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fail(sentence: str, status: int = 1) -> NoReturn:
    typer.secho(f"forebay: {sentence}", err=True, fg="red")
    sys.exit(status)
