"""The whole mesh in one event loop: five real servers over loopback and a real Valkey, around an engine that the test holds.

It serves where a test must steer what the processes of `MeshProcesses` hide: a hand-stepped engine, for one.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from forebay.clock import SystemClock
from forebay.metering import main as metering
from forebay.metering.config import MeteringConfig
from forebay.policy.keys import hash_key, new_key
from forebay.quota import main as quota
from forebay.quota.config import QuotaConfig
from forebay.router import main as router
from forebay.router.config import RouterConfig
from forebay.rpc.server import RpcServer
from forebay.scheduler import main as scheduler
from forebay.scheduler.config import SchedulerConfig
from forebay.worker import main as worker
from forebay.worker.config import WorkerConfig
from forebay.worker.engine import Engine
from forebay.worker import simulated_model

PEPPER = "a pepper for tests only"
MODEL = "simulated"


class Mesh:
    """One of each service; an async context manager that returns once the router is serving.

    Attributes:
        keys: a key of each tenant, by tenant id.
    """

    def __init__(self, directory: Path, redis_url: str, engine: Engine, tenants: dict[str, dict[str, Any]]) -> None:
        """Prepares.

        Args:
            directory: where files go.
            redis_url: a real Redis or Valkey.
            engine: what the worker runs; not started yet.
            tenants: as in a tenants file.
        """
        self._directory = directory
        self._redis_url = redis_url
        self._engine = engine
        self._tenants = tenants
        self._stack = AsyncExitStack()
        self._router: RpcServer | None = None
        self.keys: dict[str, str] = {}

    @property
    def address(self) -> str:
        """Where the router listens."""
        assert self._router is not None
        return self._router.address

    async def __aenter__(self) -> Self:
        directory = self._directory
        hashes = []
        for tenant in self._tenants:
            key_id, self.keys[tenant] = new_key()
            digest = hash_key(PEPPER.encode(), self.keys[tenant]).hex()
            hashes.append({"key_id": key_id, "tenant": tenant, "hash": digest})
        (directory / "tenants.yaml").write_text(yaml.safe_dump({"tenants": self._tenants}))
        (directory / "keys.yaml").write_text(yaml.safe_dump({"keys": hashes}))
        (directory / "model").mkdir()
        simulated_model.build(directory / "model")
        stack = self._stack

        metering_config = MeteringConfig(id="metering-1", ledger_path=directory / "ledger.sqlite")
        metering_server = await self._start(await metering.build(metering_config, stack))
        quota_config = QuotaConfig(
            id="quota-1",
            redis_url=self._redis_url,
            tenants_file=directory / "tenants.yaml",
            keys_file=directory / "keys.yaml",
            pepper=PEPPER,
        )
        quota_server = await self._start(await quota.build(quota_config, stack))
        scheduler_server = await self._start(await scheduler.build(SchedulerConfig(id="scheduler-1"), stack))
        addresses = {
            "quota_address": quota_server.address,
            "metering_address": metering_server.address,
            "scheduler_address": scheduler_server.address,
        }
        worker_config = WorkerConfig(id="worker-1", engine="simulated", model=MODEL, **addresses)
        await self._start(await worker.build_around(self._engine, worker_config, stack, SystemClock()))
        router_config = RouterConfig(
            id="router-1",
            key_pepper=PEPPER,
            models=[{"name": MODEL, "directory": directory / "model", "context_tokens": self._engine.capacity.max_model_len}],
            **addresses,
        )
        self._router = await self._start(await router.build(router_config, stack))
        return self

    async def _start(self, server: RpcServer) -> RpcServer:
        await server.start()
        self._stack.push_async_callback(server.drain, 0)
        return server

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with asyncio.timeout(10):
            await self._stack.aclose()
