"""A client that keeps a fixed number of streams busy for a fixed time and counts what comes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import grpc

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2, router_pb2_grpc

PROMPT = router_pb2.Prompt(tokens=router_pb2.TokenIds(ids=range(10, 26)))


@dataclass(slots=True)
class Count:
    """What one run of the load brought."""

    seconds: float = 0.0
    tokens: int = 0
    messages: int = 0
    requests: int = 0
    first_token_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_message(self) -> float:
        return self.tokens / max(1, self.messages)

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


class Load:
    """A target and how to ask it.

    A request that fails ends the run: a benchmark of errors measures nothing.
    """

    def __init__(self, address: str, key: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def close(self) -> None:
        await self._channel.close()

    async def streams(self, streams: int, seconds: float, tokens: int) -> Count:
        """Keeps `streams` streams of `tokens` tokens each running; counts what arrives within `seconds`."""
        count = Count()
        await self.requests(1, 1, 1)
        end = time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < end:
                call = self._stub.StreamGenerate(
                    router_pb2.StreamGenerateRequest(options=options(tokens)), metadata=self._metadata, timeout=120
                )
                started = time.perf_counter()
                first = True
                while (message := await call.read()) is not grpc.aio.EOF:
                    now = time.perf_counter()
                    if message.HasField("delta"):
                        if first:
                            count.first_token_s.append(now - started)
                            first = False
                        if now > end:
                            call.cancel()
                            return
                        count.tokens += len(message.delta.token_ids)
                        count.messages += 1
                if first:
                    raise RuntimeError(f"a stream ended without a token: {await call.code()} {await call.details()}")
                count.requests += 1

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(streams)))
        count.seconds = min(time.perf_counter() - started, seconds)
        return count

    async def requests(self, concurrency: int, total: int, tokens: int) -> Count:
        """Sends `total` unary requests of `tokens` tokens each, `concurrency` at a time."""
        count = Count()
        left = iter(range(total))

        async def one() -> None:
            for _ in left:
                response = await self._stub.Generate(
                    router_pb2.GenerateRequest(options=options(tokens)), metadata=self._metadata, timeout=120
                )
                count.requests += 1
                count.tokens += response.usage.completion_tokens

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        count.seconds = time.perf_counter() - started
        return count

    async def first_tokens(self, total: int) -> list[float]:
        """Sends `total` streams of one token, one after another; returns the seconds to each first token."""
        seconds = []
        for _ in range(total):
            started = time.perf_counter()
            call = self._stub.StreamGenerate(
                router_pb2.StreamGenerateRequest(options=options(1)), metadata=self._metadata, timeout=60
            )
            async for message in call:
                if message.HasField("delta"):
                    seconds.append(time.perf_counter() - started)
        return seconds


def options(tokens: int) -> router_pb2.GenerateOptions:
    """Returns a request for exactly `tokens` tokens."""
    sampling = common_pb2.Sampling(max_tokens=tokens, ignore_eos=True)
    return router_pb2.GenerateOptions(prompt=PROMPT, sampling=sampling)
