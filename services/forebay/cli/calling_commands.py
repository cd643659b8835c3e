"""The commands of tenants: they call a router with a key. Each only reads its arguments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli.data_dir import DEFAULT_DATA, DataDir
from forebay.cli.parameters import Data, Json, Key, Router, Tenant, run

if TYPE_CHECKING:
    from forebay.client import Options, UsageTotal

usage = typer.Typer(help="What was used, from the ledger.", no_args_is_help=True)

All = Annotated[bool, typer.Option("--all", help="All tenants' rows, as the operator: from metering itself.")]


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
    from forebay.cli import answer

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
    run(answer.generate(address, secret, sys.stdin.read() if prompt == "-" else prompt, system, options))


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
    from forebay.cli import ledger
    from forebay.cli.operator import Operator

    cursor = "" if start == "beginning" else start
    if everyone:
        pages = ledger.operator_pages(Operator.load(DataDir(data)), follow)
        run(ledger.tail(pages, cursor, follow, as_json))
    else:
        address, secret = _access(DataDir(data), router, key, tenant)
        run(_tail_of_tenant(address, secret, cursor, follow, as_json))


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
    from forebay.cli import ledger
    from forebay.cli.operator import Operator
    from forebay.client.messages import to_pb_dimensions

    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    try:
        to_pb_dimensions(dimensions)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--by") from None
    if everyone:
        work = ledger.operator_sum(Operator.load(DataDir(data)), dimensions)
    else:
        work = _sum_of_tenant(*_access(DataDir(data), router, key, tenant), dimensions)
    ledger.print_totals(dimensions, run(work), as_json)


async def _tail_of_tenant(address: str, key: str, cursor: str, follow: bool, as_json: bool) -> None:
    from forebay.cli import ledger
    from forebay.client import ForebayClient

    async with ForebayClient(address, key) as client:
        await ledger.tail(ledger.tenant_pages(client, follow), cursor, follow, as_json)


async def _sum_of_tenant(address: str, key: str, by: list[str]) -> list[UsageTotal]:
    from forebay.client import ForebayClient

    async with ForebayClient(address, key) as client:
        return await client.sum_usage(by)


def _access(data: DataDir, router: str | None, key: str | None, tenant: str | None) -> tuple[str, str]:
    """Returns the address and the key to call with."""
    from forebay.cli import access

    return access.router_address(data, router), access.tenant_key(data, key, tenant)
