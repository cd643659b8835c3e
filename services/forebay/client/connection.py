"""The client's connection to a router."""

from __future__ import annotations

from typing import Any

import grpc

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
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Loopback and pod addresses are never behind a proxy; an inherited http_proxy must not catch them.
    ("grpc.enable_http_proxy", 0),
    # Two clients of one process do not share a connection: a full one holds up only its own calls.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.primary_user_agent", "forebay/client"),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel to host:port that connects when it is first used, and again whenever it must."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS, compression=grpc.Compression.NoCompression)
