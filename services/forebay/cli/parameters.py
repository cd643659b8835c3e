"""Parameters that several commands have, and how a command's work is run."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from forebay.cli.data_dir import DataDir
from forebay.cli.failures import WrongUsage

if TYPE_CHECKING:
    from forebay.cli.access import Access

T = TypeVar("T")

Data = Annotated[Path, typer.Option("--data", metavar="DIR", envvar="FOREBAY_DATA", help="The mesh's data directory.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", envvar="FOREBAY_KEY", help="A tenant's key.")]
Tenant = Annotated[str | None, typer.Option(metavar="NAME", help="Call with this sample tenant's development key.")]
Router = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", envvar="FOREBAY_ROUTER", help="A router; by default that of the mesh in --data."),
]
Tls = Annotated[
    bool | None,
    typer.Option(
        "--tls/--insecure",
        envvar="FOREBAY_TLS",
        help="Speak TLS to the router, or plaintext, where others on the way can read the key. "
        "By default plaintext to this machine and TLS to any other.",
    ),
]
_PEM: dict[str, Any] = {"metavar": "FILE", "exists": True, "dir_okay": False, "readable": True}
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="FOREBAY_CA",
        help="Who may vouch for the router (PEM); by default whom this machine trusts.",
        **_PEM,
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option("--cert", envvar="FOREBAY_CERT", help="A certificate to show to the router (PEM).", **_PEM),
]
CertKey = Annotated[
    Path | None, typer.Option("--cert-key", envvar="FOREBAY_CERT_KEY", help="The private key of --cert (PEM).", **_PEM)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def named(value: str | None) -> str | None:
    """Returns a name that was given. An empty one is most often a variable that is not set, and would select everything.

    Raises:
        BadParameter: it is empty.
    """
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty; give a name, or leave the option out")
    return value


def caller(context: typer.Context) -> Access:
    """Returns how to call the router, from the parameters above. What the command line says outweighs the environment.

    Raises:
        DataDirError: neither a router or a key is given, nor is one in the data directory.
        WrongUsage: parameters contradict each other, or cannot be used.
    """
    quiet_grpc()
    from forebay.cli.access import Access, router_address, tenant_key, tls_choice

    given = context.params
    data = DataDir(given["data"])
    # A key in the environment is a default; a tenant that is named on the command line is meant.
    key = given["key"] if given["tenant"] is None or on_command_line(context, "key") else None
    files = [name for name in ("ca", "cert", "cert_key") if on_command_line(context, name)]
    tls = tls_choice(given["tls"], given["ca"], given["cert"], given["cert_key"], from_command_line=bool(files))
    return Access(router_address(data, given["router"]), tenant_key(data, key, given["tenant"]), tls)


def refuse_beside(context: typer.Context, option: str, *names: str) -> None:
    """Refuses parameters that an option leaves nothing to say.

    Raises:
        WrongUsage: one of them is on the command line.
    """
    for name in names:
        if on_command_line(context, name):
            parameter = next(each for each in context.command.params if each.name == name)
            flag = parameter.opts[0] if parameter.opts[0].startswith("-") else (parameter.metavar or name)
            raise WrongUsage(f"{flag} has no meaning beside {option}; leave one of them out")


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given there, and is neither a default nor from the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def quiet_grpc() -> None:
    """Keeps gRPC's own log lines off the terminal, unless the environment asks for them; before gRPC is loaded."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work to its end, or until Ctrl-C, the usual end of a command that follows something."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
