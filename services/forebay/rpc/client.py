"""The client side of every connection between services."""

from __future__ import annotations

from typing import Any

import grpc

from forebay.config import TlsConfig
from forebay.rpc.server import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from forebay.rpc.tls import ReloadingChannel, service_name

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted peer is found again within a second, and never hammered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to be made: a peer on a busy machine is slow to shake hands, and is there.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Loopback and pod addresses are never behind a proxy; an inherited http_proxy must not catch them.
    ("grpc.enable_http_proxy", 0),
    # Connections to one address from one process are not shared between channels: a session that is full holds up nobody else.
    ("grpc.use_local_subchannel_pool", 1),
]


HUNG_AFTER_S = 20.0


def connect(
    address: str, *, caller: str, service: str = "", tls: TlsConfig | None = None, hung_after_s: float = HUNG_AFTER_S
) -> grpc.aio.Channel:
    """Returns a channel to host:port that connects by itself when first used and again whenever it must.

    Args:
        address: host:port.
        caller: this replica's name, for the peer's logs; proves nothing.
        service: what must be there, by its certificate; not looked at in plaintext.
        tls: this service's certificate; None for plaintext.
        hung_after_s: the connection to a peer that hangs ends after this time at most, and calls on it with UNAVAILABLE.
    """
    ping_ms = round(hung_after_s * 500)
    options = [
        *OPTIONS,
        ("grpc.primary_user_agent", f"forebay/{caller}"),
        ("grpc.keepalive_time_ms", ping_ms),
        # What ends the connection, 60 s by default; the keepalive's own timeout does not.
        ("grpc.http2.ping_timeout_ms", ping_ms),
    ]
    compression = grpc.Compression.NoCompression
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, compression=compression)
    # The peer is checked for what it is, not for where it is: addresses change, and loopback says nothing.
    options.append(("grpc.ssl_target_name_override", service_name(service)))
    return ReloadingChannel(
        tls, lambda credentials: grpc.aio.secure_channel(address, credentials, options=options, compression=compression)
    )
