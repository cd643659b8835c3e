"""A whole router, as its `main` builds it, among fake peers over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from forebay.api.router.v1 import router_pb2, router_pb2_grpc
from forebay.router.config import RouterConfig
from forebay.router.main import build

from .peers import FakeMetering, FakeQuota, FakeScheduler, FakeWorker
from .samples import KEY, PEPPER
from .tiny_model import write_model

METADATA = (("authorization", f"Bearer {KEY}"),)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny"))


class RouterWorld:
    """A router and its peers; call `start` once the peers are as they should be."""

    def __init__(self, stack: AsyncExitStack, model: Path) -> None:
        self._stack = stack
        self._model = model
        self.quota = FakeQuota()
        self.worker = FakeWorker("w1")
        self.other = FakeWorker("w2")
        self.scheduler = FakeScheduler(self.worker, self.other)
        self.metering = FakeMetering()

    async def start(self, *, peers: bool = True, **fields: object) -> None:
        """Starts the peers, then the router with `fields` in its configuration."""
        for fake in (self.quota, self.scheduler, self.worker, self.other, self.metering):
            await fake.server.start()
            self._stack.push_async_callback(fake.server.kill)
        if not peers:
            await self.quota.server.kill()
            await self.scheduler.server.kill()
        config = RouterConfig(
            id="router-1",
            quota_address=self.quota.server.address,
            scheduler_address=self.scheduler.server.address,
            metering_address=self.metering.server.address,
            pepper=PEPPER.decode(),
            models=[{"name": "tiny", "directory": self._model, "context_tokens": 4096, "default_max_tokens": 16}],
            **{"warm_tokenizers": False, **fields},
        )
        self._config = config
        await self.restart(config.listen)
        channel = grpc.aio.insecure_channel(self.server.address, options=[("grpc.max_receive_message_length", -1)])
        self._stack.push_async_callback(channel.close)
        self.channel = channel
        self.client = router_pb2_grpc.RouterServiceStub(channel)
        self.usage = router_pb2_grpc.UsageServiceStub(channel)

    async def restart(self, listen: str) -> None:
        """Starts a router with the configuration of the first; that one must be gone from `listen`."""
        self.server = await build(self._config.model_copy(update={"listen": listen}), self._stack)
        await self.server.start()
        self._stack.push_async_callback(self.server.drain, 0)

    def stream(self, timeout: float = 60, **options: object) -> StreamCall:
        """Begins a streamed answer."""
        request = router_pb2.StreamGenerateRequest(options=options_for(**options))
        return self.client.StreamGenerate(request, metadata=METADATA, timeout=timeout)


StreamCall = grpc.aio.UnaryStreamCall[router_pb2.StreamGenerateRequest, router_pb2.StreamGenerateResponse]


def options_for(**options: object) -> router_pb2.GenerateOptions:
    """A short question, with `options` of its own."""
    question = router_pb2.Prompt(chat=router_pb2.Chat(messages=[router_pb2.Chat.Message(role="user", content="hello")]))
    return router_pb2.GenerateOptions(**{"prompt": question, **options})  # type: ignore[arg-type]


@pytest.fixture
async def world(tiny_model: Path) -> AsyncIterator[RouterWorld]:
    """A router that is still to be started."""
    async with AsyncExitStack() as stack:
        yield RouterWorld(stack, tiny_model)
