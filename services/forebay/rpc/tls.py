"""Mutual TLS between services: who may be believed to be which service, and certificates that change without a restart.

Every service has a certificate of the mesh's own authority, with one DNS name `<service>.forebay.internal`. The name
does not say where the service runs but what it is, and both ends check it: a client knows which service it means to
talk to, whatever its address, and a server learns from it who calls. A worker's certificate is so of no use to pose
as quota. The common name is the replica's, for logs.

Files are looked at again when a connection is made, at most once a second; a certificate that was replaced in its
file is so used by the next connection. Connections that stand go on: TLS proves who is there once, at their
beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from forebay.config import PublicTlsConfig, TlsConfig
from forebay.telemetry.logs import get_logger

DOMAIN = "forebay.internal"
LOOK_EVERY_S = 1.0
# How long calls of the connection before may go on once there is a new certificate.
OLD_CHANNEL_GRACE_S = 3600.0

log = get_logger("tls")


def service_name(service: str) -> str:
    """Returns the DNS name that a service's certificate bears."""
    return f"{service}.{DOMAIN}"


def service_of(names: Sequence[bytes]) -> str:
    """Returns the service that a verified certificate's DNS names say; empty when none of them is a service's."""
    for name in names:
        service, _, domain = name.decode(errors="replace").partition(".")
        if domain == DOMAIN:
            return service
    return ""


class PemFiles:
    """Some PEM files, read again when one of them has changed.

    A half-written set, or one that cannot be read, leaves the contents before in force.
    """

    def __init__(self, files: Sequence[Path], monotonic: Callable[[], float] = time.monotonic) -> None:
        """Reads them.

        Raises:
            OSError: one cannot be read.
        """
        self._files = files
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._stamp = self._read_stamp()
        self.contents = self._read()

    def changed(self) -> bool:
        """Looks at the files, at most once a second; returns whether `contents` are new."""
        now = self._monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = now
        try:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return False
            contents = self._read()
        except OSError as error:
            log.warning("certificates cannot be read; the ones before stay in force", error=str(error))
            return False
        self._stamp, self.contents = stamp, contents
        log.info("certificates changed", file=str(self._files[-2]))
        return True

    def _read_stamp(self) -> list[tuple[int, int]]:
        return [(stat.st_mtime_ns, stat.st_ino) for stat in (file.stat() for file in self._files)]

    def _read(self) -> list[bytes]:
        return [file.read_bytes() for file in self._files]


def server_credentials(config: TlsConfig | PublicTlsConfig) -> grpc.ServerCredentials:
    """Returns credentials that look at the files for each connection; with a `TlsConfig` clients must show a certificate."""
    mutual = isinstance(config, TlsConfig)
    files = PemFiles(config.files)

    def configuration() -> Any:
        *ca, certificate, key = files.contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca[0] if ca else None)

    def fetch() -> Any:
        # Called by gRPC's own threads for each connection; None keeps what was before.
        return configuration() if files.changed() else None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, require_client_authentication=mutual)


class ReloadingChannel(grpc.aio.Channel):
    """A channel that is made anew for the calls that come after its certificate has changed."""

    def __init__(self, config: TlsConfig, make: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]) -> None:
        self._files = PemFiles(config.files)
        self._make = make
        self._channel = make(self._credentials())
        self._closing: set[asyncio.Task[None]] = set()

    def _credentials(self) -> grpc.ChannelCredentials:
        ca, certificate, key = self._files.contents
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _current(self) -> grpc.aio.Channel:
        if self._files.changed():
            task = asyncio.get_running_loop().create_task(self._channel.close(OLD_CHANNEL_GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._channel = self._make(self._credentials())
        return self._channel

    def _method(self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # A multi-callable belongs to one channel; stubs keep theirs for ever, so theirs asks for the present one at each call.
        return lambda *call, **how: getattr(self._current(), kind)(*arguments, **options)(*call, **how)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_stream", arguments, options)

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel, and at once those before it."""
        for task in self._closing:
            task.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self._channel.channel_ready()
