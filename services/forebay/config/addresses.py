"""Addresses in a configuration, and who can reach them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode


def host_and_port(value: str) -> str:
    """Returns `value` if it is host:port.

    Raises:
        ValueError: it is not.
    """
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("give it as host:port, such as 127.0.0.1:7001")
    return value


def anywhere(listen: str) -> bool:
    """Returns whether an address to listen on is every interface's, so that nobody elsewhere can be told to connect to it."""
    return _host(listen) in ("0.0.0.0", "::", "*", "::0", "0")  # noqa: S104 - compared, not bound


def exposed(listen: str) -> bool:
    """Returns whether others than this machine can connect to an address that is listened on, as far as its text tells."""
    host = _host(listen)
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower() != "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


# host:port, as every address in a configuration.
Address = Annotated[str, AfterValidator(host_and_port)]

# The replicas of one service: a list, or one text with commas between them.
Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
