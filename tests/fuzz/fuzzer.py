"""Sends a running mesh what it must survive: every rpc that reflection shows, as every caller, malformed and hostile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from forebay.cli.certificates import certify
from forebay.client import ForebayClient
from forebay.rpc.allowlist import ADMIN, PUBLIC, SERVICES, allowed
from forebay.rpc.tls import service_name
from forebay.testing.processes import MeshProcesses

from .messages import Generator
from .outcomes import Outcomes
from .reflection import Method, methods

CONCURRENT = 24
CALM_CALLS = 1_000
DEADLINES_S = (0.05, 0.2, 0.6, 0.6)
# The tenant whose key and limits the run misuses; nobody else may feel it.
HOSTILE = "mallory"
TENANTS = ("acme", "globex", "initech")
REQUEST_IDS = tuple(f"{number:032x}" for number in range(1, 9))
# An operator who drains a worker is obeyed. Those who may do that send it only what is no message.
OBEYED = {"/forebay.api.worker.v1.WorkerService/Drain"}

# How a message is made wrong, by how often. Costly ones are rare: a run has thousands of messages.
KINDS: Mapping[str, float] = {
    "shape": 60,
    "truncated": 8,
    "flipped": 8,
    "noise": 6,
    "unknown_fields": 4,
    "nested": 4,
    "many": 0.6,
    "parts": 0.6,
    "oversized": 0.3,
}
HEAVY = ("many", "many", "many", "parts", "parts", "oversized")
METADATA: Mapping[str, float] = {"usual": 80, "stranger": 8, "large": 3, "too_large": 2, "many": 3, "binary": 4}


# What a connection says that then says no more: nothing, half of HTTP/2's first words, all of them, the beginning of a handshake.
SILENT = (
    b"",
    b"PRI * HTTP",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01",
)
SILENT_CONNECTIONS = 20

# How many messages a session brings.
LENGTHS: Mapping[int, float] = {1: 20, 2: 20, 4: 40, 8: 15, 100: 5}

Metadata = list[tuple[str, str | bytes]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One message, as bytes, and what is wrong with it."""

    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """One rpc of one process."""

    process: str
    method: Method


def open_channel(mesh: MeshProcesses, process: str, caller: str) -> grpc.aio.Channel:
    """Returns a channel to a process of the mesh as another service of it; nothing on this side bounds what is sent."""
    service = process.rstrip("-0123456789")
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_metadata_size", 16 << 20),
        ("grpc.absolute_max_metadata_size", 16 << 20),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.ssl_target_name_override", service_name(service)),
    ]
    address = mesh.state()["processes"][process]["address"]
    if service == "router":
        return grpc.aio.insecure_channel(address, options=options)
    files = certify(mesh.data / "certificates", caller, f"fuzz-{caller}")
    ca, certificate, key = (Path(files[name]).read_bytes() for name in ("ca_file", "certificate_file", "key_file"))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options=options)


class Fuzzer:
    """One seeded run against one mesh; an async context manager.

    Attributes:
        outcomes: how calls ended.
        messages: how many were sent, by kind.
    """

    def __init__(self, mesh: MeshProcesses, seed: int) -> None:
        self._mesh = mesh
        self._random = random.Random(seed)
        self._key = mesh.key(HOSTILE)
        self._generator = Generator(self._random, _plausible(mesh, self._key))
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._targets: list[Target] = []
        self._turns: Iterator[Target] = iter(())
        self._heavy: deque[tuple[Target, str]] = deque()
        self._stack = AsyncExitStack()
        self.outcomes = Outcomes()
        self.messages: Counter[str] = Counter()

    async def __aenter__(self) -> Fuzzer:
        for process in self.processes:
            for caller in (*SERVICES, ADMIN):
                channel = open_channel(self._mesh, process, caller)
                self._channels[process, caller] = await self._stack.enter_async_context(channel)
            found = await methods(self._channels[process, ADMIN])
            self._targets += [Target(process, method) for method in found]
            host, _, port = self._mesh.state()["processes"][process]["address"].rpartition(":")
            for number in range(SILENT_CONNECTIONS):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(SILENT[number % len(SILENT)])
                self._stack.callback(writer.close)
        # Every rpc has its turn, whatever the seed. What takes most memory comes first: what a process needs for it at
        # its peak, and then keeps for the next time, is so no growth.
        self._turns = itertools.cycle(self._random.sample(self._targets, len(self._targets)))
        heavy = [(target, kind) for target in self._targets for kind in HEAVY]
        self._heavy = deque(self._random.sample(heavy, len(heavy)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def processes(self) -> list[str]:
        """The processes that serve rpcs."""
        return [name for name in self._mesh.state()["processes"] if name != "valkey"]

    @property
    def methods(self) -> int:
        """How many different rpcs there are."""
        return len({target.method.path for target in self._targets})

    async def send(self, messages: int) -> None:
        """Returns once so many messages more have been sent and their calls have ended."""
        goal = self.messages.total() + messages

        async def caller() -> None:
            while self.messages.total() < goal:
                await (self._call(*self._heavy.popleft()) if self._heavy else self._call(next(self._turns)))

        await asyncio.gather(*(caller() for _ in range(CONCURRENT)))

    async def serves(self) -> bool:
        """Says whether a request of each tenant is answered."""
        for tenant in TENANTS:
            async with ForebayClient(self._mesh.router_address(), self._mesh.key(tenant), timeout=120) as client:
                answer = await client.generate(f"Are you well, asks {tenant}", max_tokens=4)
                if not answer.usage.completion:
                    return False
        return True

    async def calm(self) -> None:
        """Sends every process harmless calls, in the course of which Python frees what the hostile ones left behind."""
        for process in self.processes:
            check = self._channels[process, ADMIN].unary_unary("/grpc.health.v1.Health/Check")
            for _ in range(CALM_CALLS // CONCURRENT):
                await asyncio.gather(*(check(b"") for _ in range(CONCURRENT)))

    async def _call(self, target: Target, kind: str | None = None) -> None:
        method = target.method
        may = sorted(allowed(method.path) & {*SERVICES, ADMIN})
        rightful = bool(may) and self._random.random() < 0.95
        caller = self._random.choice(may if rightful else [*SERVICES, ADMIN])
        if method.path in OBEYED and caller in may:
            requests = [Request("nested", b"\x0b")]
        elif method.streams_in and kind:
            requests = [self._request(method, kind="shape"), self._request(method, kind=kind)]
        elif method.streams_in:
            requests = self._session(method)
        else:
            requests = [self._request(method, kind=kind)]
        dressed, metadata = self._metadata(method)
        try:
            await self._exchange(self._channels[target.process, caller], method, requests, metadata)
        except grpc.aio.AioRpcError as error:
            sent = ", ".join(f"{request.kind} {request.data[:60].hex()}" for request in requests[:3])
            self.outcomes.failed(method.path, error, f"{target.process} as {caller}, metadata {dressed}: {sent}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.outcomes.by_end[method.path, "CANCELLED", "(by the client)"] += 1
        else:
            self.outcomes.answered(method.path)

    async def _exchange(
        self,
        channel: grpc.aio.Channel,
        method: Method,
        requests: Sequence[Request],
        metadata: Metadata,
    ) -> None:
        kind = f"{'stream' if method.streams_in else 'unary'}_{'stream' if method.streams_out else 'unary'}"
        open_call = getattr(channel, kind)(method.path)
        how = {"metadata": metadata, "timeout": self._random.choice(DEADLINES_S)}
        ending = self._random.choice(("wait", "wait", "half_close", "half_close", "cancel"))
        if not method.streams_in:
            call = open_call(requests[0].data, **how)
            self.messages[requests[0].kind] += 1
        else:
            call = open_call(**how)
            try:
                for request in requests:
                    if call.done():
                        break
                    await call.write(request.data)
                    self.messages[request.kind] += 1
                if ending == "half_close":
                    await call.done_writing()
            except (asyncio.InvalidStateError, grpc.aio.BaseError):
                pass  # the server has ended the call; how, the reading below tells
        if ending == "cancel":
            call.cancel()
        if method.streams_out:
            async for _ in call:
                pass
        else:
            await call

    def _session(self, method: Method) -> list[Request]:
        """Returns the messages of one stream: mostly a right beginning, then anything; sometimes very many."""
        length = self._pick(LENGTHS)
        wrong_first = self._random.random() < 0.2
        return [
            self._request(
                method,
                opening=number == 0,
                kind="shape" if length > 10 or (number == 0 and not wrong_first) else self._pick(KINDS),
            )
            for number in range(length)
        ]

    def _request(self, method: Method, *, opening: bool = True, kind: str | None = None) -> Request:
        generator = self._generator
        kind = kind or self._pick(KINDS)
        if kind in ("noise", "nested", "oversized"):
            make: Callable[[], bytes] = getattr(generator, kind)
            return Request(kind, make())
        if kind == "parts":
            return Request(kind, generator.parts(method.request))
        if kind == "many":
            return Request(kind, generator.many(method.request).SerializeToString())
        data = generator.spoil(generator.message(method.request, opening=opening).SerializeToString())
        return Request(kind, data if kind == "shape" else getattr(generator, kind)(data))

    def _metadata(self, method: Method) -> tuple[str, Metadata]:
        dressed = self._pick(METADATA)
        key = f"Bearer {self._key}"
        metadata: Metadata = []
        if method.path in PUBLIC and dressed != "stranger":
            metadata.append(("authorization", key))
        match dressed:
            case "stranger":
                wrong = (
                    "",
                    "Bearer",
                    "Bearer fb_",
                    f"{key}x",
                    key.lower(),
                    key[7:],
                    "Basic YTpi",
                    "Bearer " + "f" * 4_000,
                )
                metadata.append(("authorization", self._random.choice(wrong)))
            case "large":
                metadata.append(("x-junk", "j" * 6_000))
            case "too_large":
                metadata.append(("x-junk", "j" * self._random.choice((20_000, 300_000))))
            case "many":
                metadata += [(f"x-junk-{number}", "j") for number in range(100)]
            case "binary":
                metadata += [
                    ("x-junk-bin", self._random.randbytes(500)),
                    ("traceparent", "00-nonsense"),
                    ("tracestate", "="),
                ]
        return dressed, metadata

    def _pick(self, weights: Mapping[T, float]) -> T:
        return self._random.choices(list(weights), list(weights.values()))[0]


def _plausible(mesh: MeshProcesses, key: str) -> dict[str, list[Any]]:
    state = mesh.state()
    return {
        "tenant_id": [HOSTILE, HOSTILE, "umbrella"],
        "tenant_ids": [HOSTILE, *TENANTS],
        "key_id": [key.split("_")[1]],
        "request_id": list(REQUEST_IDS),
        "model": [state["model"]["name"], "other"],
        # No real replica's name: one that comes back in a later life is meant to fence the earlier (rules P2 and P4).
        "id": ["fuzz-1", "fuzz-2"],
        "worker_id": ["fuzz-1", "worker-1"],
        "pool": ["default", "fuzz"],
        "plan": ["basic"],
        "cursor": ["", "now", "v1:0"],
        "service_class": ["gold", "silver"],
        "trace_id": ["", "1" * 32],
        "traceparent": [f"00-{'1' * 32}-{'2' * 16}-01"],
        "address": ["127.0.0.1:1"],
        "role": ["user", "system", "assistant"],
        "text": ["Once upon a time"],
        "content": ["Once upon a time"],
        "service": ["", "forebay.api.quota.v1.QuotaService"],
        "adapter": [""],
        "n": [1],
        "seq": [1, 2],
        "attempt": [1, 2],
    }
