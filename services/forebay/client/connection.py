"""The client's connection to a router: where it is, and whether others on the way could read the key.

A key travels in plaintext only to this machine, or where the caller says `tls=False`. Everywhere else the client speaks TLS and
checks the router's certificate, by default with the authorities that this machine trusts.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from forebay.client.options import text

# The routers' own bounds; a larger message or header is refused there.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
# A connection whose router does not answer a ping ends after 20 s at most, and its calls with it.
_PING_MS = 10_000

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", _PING_MS),
    ("grpc.keepalive_timeout_ms", 5_000),
    # This one ends the connection, after 60 s by default; the keepalive's own time-out does not.
    ("grpc.http2.ping_timeout_ms", _PING_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted router is found again within a second, and never hammered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to be made: a far or busy router is slow to shake hands, and is there.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Loopback and pod addresses are never behind a proxy; an inherited http_proxy must not catch them.
    ("grpc.enable_http_proxy", 0),
    # Two clients of one process do not share a connection: a full one holds up only its own calls.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.primary_user_agent", "forebay/client"),
]
# Where systems keep the authorities that they trust, if OpenSSL's own default is not there.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_ADDRESS = re.compile(r"(?:dns:///)?(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_FORM = "HOST:PORT, such as 127.0.0.1:20001"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the client and the router prove who they are.

    Attributes:
        ca_file: PEM file of the authorities that may vouch for the router; None for those that this machine trusts.
        certificate_file: the client's own certificate (PEM), where what stands before the routers asks for one.
        key_file: the certificate's private key (PEM).
        server_name: the name to look for in the router's certificate; the address's host by default.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together: give both or neither")


def open_channel(address: str, tls: bool | Tls | None = None) -> tuple[grpc.aio.Channel, bool]:
    """Returns a channel that connects when it is first used and again whenever it must, and whether it is encrypted.

    Args:
        address: host:port, [IPv6]:port or unix:path.
        tls: True or a `Tls` for TLS; False for plaintext; None for plaintext on this machine, and TLS elsewhere.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the address is none, or a file of `tls` does not hold what it should.
        OSError: a file of `tls` cannot be read.
    """
    host = host_of(address)
    if tls is not None and not isinstance(tls, bool | Tls):
        raise TypeError(f"tls must be True, False or a Tls(...), not {type(tls).__name__}")
    if tls is None:
        tls = not is_local(host)
    none = grpc.Compression.NoCompression
    if tls is False:
        return grpc.aio.insecure_channel(address, options=_OPTIONS, compression=none), False
    chosen = tls if isinstance(tls, Tls) else Tls()
    options = list(_OPTIONS)
    if chosen.server_name:
        options.append(("grpc.ssl_target_name_override", text("server_name", chosen.server_name)))
    return grpc.aio.secure_channel(address, _credentials(chosen), options=options, compression=none), True


def host_of(address: str) -> str:
    """Returns the host in an address; empty for a socket of this machine.

    Raises:
        TypeError: it is no string.
        ValueError: it is no address; says what one looks like.
    """
    text("address", address)
    if address.startswith("unix:") and len(address) > len("unix:"):
        return ""
    if "://" in address and not address.startswith("dns:///"):
        scheme = address.partition("://")[0]
        hint = "; TLS is asked for apart from the address" if scheme == "https" else ""
        raise ValueError(f"address must be {_FORM}, without {scheme}://{hint}")
    found = _ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found["port"]) <= 65_535:
        raise ValueError(f"address must be {_FORM}, not {address[:100]!r}")
    return found["host"].strip("[]")


def is_local(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    if host == "" or host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    roots = _trusted() if tls.ca_file is None else _pem(tls.ca_file, "CERTIFICATE")
    if tls.certificate_file is None or tls.key_file is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(
        roots, _pem(tls.key_file, "PRIVATE KEY"), _pem(tls.certificate_file, "CERTIFICATE")
    )


def _pem(file: str | os.PathLike[str], holds: str) -> bytes:
    content = Path(file).read_bytes()
    if re.search(rb"-----BEGIN [A-Z ]*" + holds.encode() + rb"-----", content) is None:
        raise ValueError(f"{os.fspath(file)} holds no {holds.lower()} in PEM form")
    if holds == "CERTIFICATE":
        try:
            ssl.create_default_context(cadata=content.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError):
            raise ValueError(f"{os.fspath(file)} holds a certificate that cannot be read") from None
    return content


def _trusted() -> bytes | None:
    """Returns the authorities that this machine trusts; None for those that come with gRPC."""
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ:
        return None  # gRPC reads it itself
    for file in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        try:
            if file:
                return Path(file).read_bytes()
        except OSError:
            continue
    return None
