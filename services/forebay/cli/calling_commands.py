"""The commands of tenants: they call a router with a key. Each only reads its arguments."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli.data_dir import DEFAULT_DATA, DataDir
from forebay.cli.failures import WrongUsage
from forebay.cli.parameters import (
    Ca,
    Cert,
    CertKey,
    Data,
    Json,
    Key,
    Router,
    Tenant,
    Tls,
    caller,
    named,
    on_command_line,
    quiet_grpc,
    refuse_beside,
    run,
)

if TYPE_CHECKING:
    from forebay.cli.ledger import Start

usage = typer.Typer(help="What was used, from the ledger.", no_args_is_help=True)

All = Annotated[bool, typer.Option("--all", help="All tenants' rows, as the operator: from metering itself.")]

# What says who is calling and how; an operator is neither.
_CALLER = ("key", "tenant", "router", "tls", "ca", "cert", "cert_key")
_SPAN = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")],
    key: Key = None,
    tenant: Tenant = None,
    router: Router = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model, where there is more than one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="The most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="0..2", help="0 is greedy; 1 by default.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")] = None,
    tls: Tls = None,
    ca: Ca = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Streams an answer, and then says what it took."""
    quiet_grpc()
    from forebay.cli import answer

    if prompt == "-":
        prompt = _standard_input()
    given = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    request = answer.request(prompt, system, given)
    run(answer.generate(caller(context), request))


@usage.command("tail")
def usage_tail(
    context: typer.Context,
    key: Key = None,
    tenant: Tenant = None,
    everyone: All = False,
    start: Annotated[
        str,
        typer.Option("--from", metavar="START", help="beginning, now, a span such as 30m, 2h or 7d ago, or a cursor."),
    ] = "1h",
    request: Annotated[
        str | None, typer.Option(metavar="ID", callback=named, help="Only this request's rows, whenever they were.")
    ] = None,
    follow: Annotated[
        bool | None,
        typer.Option(
            "--follow/--no-follow", help="Wait for what is yet to come; by default, unless --request is given."
        ),
    ] = None,
    router: Router = None,
    tls: Tls = None,
    ca: Ca = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Follows the usage stream, from an hour ago on."""
    quiet_grpc()
    from forebay.cli import ledger
    from forebay.cli.operator import Operator

    if request is not None and not on_command_line(context, "start"):
        start = "beginning"
    query = ledger.Query(
        start=_start(start),
        request_ids=None if request is None else (request,),
        follow=request is None if follow is None else follow,
    )
    if everyone:
        refuse_beside(context, "--all", *_CALLER)
        run(ledger.tail_all(Operator.load(DataDir(data)), query, as_json))
    else:
        run(ledger.tail_own(caller(context), query, as_json))


@usage.command("sum")
def usage_sum(
    context: typer.Context,
    by: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Dimensions, comma between: tenant, key, model, day, outcome; empty for one total."
        ),
    ] = "tenant,model",
    key: Key = None,
    tenant: Tenant = None,
    everyone: All = False,
    router: Router = None,
    tls: Tls = None,
    ca: Ca = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Adds usage up."""
    quiet_grpc()
    from forebay.cli import ledger
    from forebay.cli.operator import Operator
    from forebay.client.messages import to_pb_dimensions

    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    try:
        to_pb_dimensions(dimensions)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--by") from None
    if everyone:
        refuse_beside(context, "--all", *_CALLER)
        work = ledger.sum_all(Operator.load(DataDir(data)), dimensions)
    else:
        work = ledger.sum_own(caller(context), dimensions)
    ledger.print_totals(dimensions, run(work), as_json)


def _start(text: str) -> Start:
    """Returns where a tail begins.

    Raises:
        WrongUsage: the text says no such place.
    """
    from forebay.cli.ledger import Start

    if text == "beginning":
        return Start()
    if found := _SPAN.fullmatch(text):
        return Start(since=max(0.0, time.time() - int(found[1]) * _UNITS_S[found[2]]))
    if not text:
        raise WrongUsage("--from is empty; give beginning, now, a span such as 2h, or a cursor")
    return Start(cursor=text)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"standard input is not UTF-8: byte {error.start} is not; send it as text") from None
