"""Where a command finds the mesh and the key to call with, when it is not told, and how it speaks to the router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forebay.cli.data_dir import DataDir, DataDirError
from forebay.cli.failures import WrongUsage
from forebay.cli.mesh_state import MeshState
from forebay.client import ForebayClient, Tls
from forebay.client.connection import host_of


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to call a router as a tenant.

    Attributes:
        address: the router's.
        key: the tenant's.
        tls: as `ForebayClient` takes it.
    """

    address: str
    key: str
    tls: bool | Tls | None = None

    def client(self) -> ForebayClient:
        """Returns a client; within an event loop.

        Raises:
            WrongUsage: the address, the key or a file of the TLS options cannot be used.
        """
        with wrong_usage():
            return ForebayClient(self.address, self.key, tls=self.tls)


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Turns what the client library says of its arguments into an error of the command line."""
    try:
        yield
    except OSError as error:
        raise WrongUsage(f"{error.filename} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise WrongUsage(str(error)) from None


def router_address(data: DataDir, given: str | None) -> str:
    """Returns the address to call: the one given, else the first router of the mesh that runs in the data directory.

    Raises:
        DataDirError: neither is there.
        WrongUsage: what is given is no address.
    """
    if given is None:
        return MeshState.load(data.mesh_file).address("router-1")
    with wrong_usage():
        host_of(given)
    return given


def tls_choice(
    tls: bool | None, ca: Path | None, certificate: Path | None, key: Path | None, *, from_command_line: bool
) -> bool | Tls | None:
    """Returns how to speak to the router, as `ForebayClient` takes it.

    Args:
        tls: True for TLS, False for plaintext, None for what suits the address.
        ca: the authorities that may vouch for the router.
        certificate: the client's own certificate.
        key: the private key of that certificate.
        from_command_line: whether the files were named there. If so, they ask for TLS; those of the environment only serve it.

    Raises:
        WrongUsage: the options contradict each other.
    """
    files = ca is not None or certificate is not None or key is not None
    if files and from_command_line and tls is False:
        raise WrongUsage("--insecure sends plaintext, which --ca, --cert and --cert-key have no part in; leave one out")
    if tls is False or not (files and (tls or from_command_line)):
        return tls
    with wrong_usage():
        return Tls(ca, certificate, key)


def tenant_key(data: DataDir, key: str | None, tenant: str | None) -> str:
    """Returns the key to call with: the one given, else the development key of the tenant named.

    Raises:
        DataDirError: neither is there; says which tenants have keys.
        WrongUsage: both are given, or the key is empty.
    """
    if key is not None and tenant is not None:
        raise WrongUsage("--key and --tenant both say who is calling; give one of them")
    if key is not None:
        if not key.strip():
            raise WrongUsage("--key is empty; give a tenant's key, fb_..., or leave it out")
        return key
    keys = development_keys(data)
    if tenant is None:
        raise DataDirError(
            f"who is calling? Give --key KEY, or --tenant with one of: {', '.join(keys) or '(none here)'}"
        )
    if tenant not in keys:
        raise DataDirError(
            f"{tenant} has no development key in {data.root}; those who have: {', '.join(keys) or '(none)'}"
        )
    return keys[tenant]


def development_keys(data: DataDir) -> dict[str, str]:
    """Returns the sample tenants' keys by tenant; none where the data directory has none.

    Raises:
        DataDirError: the file cannot be read.
    """
    try:
        return dict(json.loads(data.development_keys_file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DataDirError(f"{data.development_keys_file} cannot be read: {error}") from None
