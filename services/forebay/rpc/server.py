"""The gRPC server that all five services are built on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from forebay.clock import SystemClock
from forebay.config import ConfigError, PublicTlsConfig, TlsConfig
from forebay.rpc.idle_connections import Peers, close_idle
from forebay.rpc.interceptors import Interceptors, RefusedCall
from forebay.rpc.tls import server_credentials
from forebay.tasks import fail_on_error
from forebay.telemetry.logs import get_logger

MAX_MESSAGE_BYTES = 16 << 20
MAX_METADATA_BYTES = 16 << 10
BEFORE_DRAIN_WITHIN_S = 2.0

log = get_logger("rpc")

OPTIONS: list[tuple[str, Any]] = [
    # A second process must fail to bind, not share the port and take half of the calls (rule P12).
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", 4096),
    # Sessions are idle at night: both ends look after the connection, and neither takes the other's pings for an attack.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Few bytes become very many when they are decompressed, before any bound of ours sees them; nothing here is compressed.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # The default is two minutes. When room is needed, `idle_connections` waits for nothing like that long.
    ("grpc.server_handshake_timeout_ms", 30_000),
]

# For servers that read their messages themselves: at most the 64 KiB that HTTP/2 begins with are in memory of a message that
# nobody reads. The estimate of the bandwidth would raise that to megabytes for each call.
UNREAD_OPTIONS: list[tuple[str, Any]] = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


class RpcServer:
    """One listening server: interceptors, health, reflection and, when asked for, channelz; no compression.

    Attributes:
        host: the host it listens on.
        port: the bound port, known once it was made.
        last_words_s: how long `drain` may take beyond the time that calls have.
    """

    last_words_s = 5.0

    def __init__(
        self,
        listen: str,
        *,
        tls: TlsConfig | PublicTlsConfig | None = None,
        max_connections: int = 1_024,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        channelz: bool = False,
        public: bool = False,
        refused: Callable[[RefusedCall], None] | None = None,
    ) -> None:
        """Binds `listen` (host:port, port 0 for a free one).

        Args:
            listen: where.
            tls: with a `TlsConfig` callers must show a certificate, and call what the allowlist gives them; with a
                `PublicTlsConfig` they check the server's alone; without one the connection is in plaintext.
            max_connections: further ones are closed at once, which their clients see as UNAVAILABLE.
            max_message_bytes: the largest request.
            channelz: whether to offer grpc.channelz.v1.
            public: whether anybody may connect. The handlers of the services that are added get an `UnreadMessage` for each
                call's message and read it once they know the caller.
            refused: is told of each call that is stopped before its handler; must neither wait nor raise.

        Raises:
            ConfigError: the address cannot be bound; the message says what to change.
        """
        self._serving: dict[str, bool] = {}
        self._max_connections = max_connections
        self._peers = Peers()
        self._closing_idle: asyncio.Task[None] | None = None
        interceptors = Interceptors(
            mutual=isinstance(tls, TlsConfig),
            refused=refused,
            unread=self._serving if public else (),
            peers=self._peers,
        )
        self._server = grpc.aio.server(
            interceptors=[interceptors],
            options=[
                *OPTIONS,
                *(UNREAD_OPTIONS if public else ()),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_allowed_incoming_connections", max_connections),
            ],
            compression=grpc.Compression.NoCompression,
        )
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._before_drain: list[Callable[[], Awaitable[None]]] = []
        self._publishing: set[asyncio.Task[None]] = set()
        self.host = listen.rpartition(":")[0]
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, server_credentials(tls))
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            raise ConfigError(
                f"listen: {listen} cannot be bound; another process has the port, or the host is not this one's"
            )
        if channelz:
            from grpc_channelz.v1 import channelz as channelz_service

            channelz_service.add_channelz_servicer(self._server)

    @property
    def address(self) -> str:
        """host:port as bound."""
        return f"{self.host}:{self.port}"

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: object, full_name: str) -> None:
        """Adds one service, not yet serving as far as its health goes.

        Args:
            register: the generated add_XServicer_to_server.
            servicer: the implementation.
            full_name: the service's full name, such as forebay.api.quota.v1.QuotaService.
        """
        register(servicer, self._server)
        self._serving[full_name] = False

    async def start(self) -> None:
        """Begins to answer. Every service says NOT_SERVING until `set_serving`."""
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection([*self._serving, health, reflection.SERVICE_NAME], self._server)
        await self._publish()
        await self._server.start()
        idle = close_idle(self.port, self._max_connections, self._peers, SystemClock())
        self._closing_idle = asyncio.create_task(idle, name="idle connections")
        self._closing_idle.add_done_callback(fail_on_error)

    def set_serving(self, full_name: str, serving: bool) -> None:
        """Says whether a service can do its job; the server as a whole (the empty name) can when all of its services can."""
        if self._serving[full_name] != serving:
            self._serving[full_name] = serving
            task = asyncio.create_task(self._publish(), name="health")
            task.add_done_callback(fail_on_error)
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    def before_drain(self, action: Callable[[], Awaitable[None]]) -> None:
        """Has something done at the beginning of a drain, while calls still run."""
        self._before_drain.append(action)

    async def stop_serving(self) -> None:
        """Says NOT_SERVING from now on, and goes on to answer."""
        await self._health.enter_graceful_shutdown()

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones go on for `grace_s` seconds, then cancels them."""
        await self.stop_serving()
        for action in self._before_drain:
            try:
                async with asyncio.timeout(BEFORE_DRAIN_WITHIN_S):
                    await action()
            except TimeoutError:
                log.warning("not done before the drain: a peer does not answer", seconds=BEFORE_DRAIN_WITHIN_S)
        await self._server.stop(grace_s)
        if self._closing_idle is not None:
            self._closing_idle.cancel()

    async def _publish(self) -> None:
        for name, serving in (*self._serving.items(), ("", all(self._serving.values()))):
            status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(name, status)
