"""The whole mesh in one event loop: five real servers over loopback and a real Valkey, around an engine that the test holds.

It serves where a test must steer what the processes of `MeshProcesses` hide: a hand-stepped engine, for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from forebay.cli.certificates import certify
from forebay.clock import SystemClock
from forebay.config import ServiceConfig
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
from forebay.worker import simulated_model
from forebay.worker.config import WorkerConfig
from forebay.worker.engine import Engine

PEPPER = "a pepper for tests only"
MODEL = "simulated"

C = TypeVar("C", bound=ServiceConfig)


class Mesh:
    """One of each service, and a worker for each pool; an async context manager that returns once the router is serving.

    Attributes:
        keys: a key of each tenant, by tenant id.
        addresses: where each service listens.
    """

    def __init__(
        self,
        directory: Path,
        redis_url: str,
        engine: Engine,
        tenants: dict[str, dict[str, Any]],
        *,
        certificates: Path | None = None,
        pools: Mapping[str, Engine] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Prepares.

        Args:
            directory: where files go.
            redis_url: a real Redis or Valkey.
            engine: what the shared pool's one worker runs; not started yet.
            tenants: as in a tenants file.
            certificates: folder of certificates for mutual TLS between services; None for plaintext.
            pools: for each dedicated pool, what its one worker runs.
            settings: further fields of configurations, by service.
        """
        self._directory = directory
        self._redis_url = redis_url
        self._tenants = tenants
        self._certificates = certificates
        self._engines = {"": engine, **(pools or {})}
        self._settings = settings or {}
        self._stack = AsyncExitStack()
        self._router: RpcServer | None = None
        self.keys: dict[str, str] = {}
        self.addresses: dict[str, str] = {}

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

        servers: dict[str, RpcServer] = {}

        def config(kind: type[C], number: int = 1, /, **fields: object) -> C:
            links = {f"{name}_address": server.address for name, server in servers.items()}
            known = {name: address for name, address in links.items() if name in kind.model_fields}
            id = f"{kind.service}-{number}"
            tls = certify(self._certificates, kind.service, id) if self._certificates is not None else None
            return kind.model_validate(
                {"id": id, "tls": tls, **known, **fields, **self._settings.get(kind.service, {})}
            )

        async def start(name: str, server: RpcServer) -> None:
            await server.start()
            self._stack.push_async_callback(server.drain, 0)
            servers[name] = server
            self.addresses[name] = server.address

        await start(
            "metering", await metering.build(config(MeteringConfig, ledger_path=directory / "ledger.sqlite"), stack)
        )
        files = {"tenants_file": directory / "tenants.yaml", "keys_file": directory / "keys.yaml"}
        quota_config = config(QuotaConfig, redis_url=self._redis_url, pepper=PEPPER, **files)
        await start("quota", await quota.build(quota_config, stack))
        await start("scheduler", await scheduler.build(config(SchedulerConfig), stack))
        for number, (pool, engine) in enumerate(self._engines.items(), start=1):
            worker_config = config(WorkerConfig, number, engine="simulated", model=MODEL, pool=pool)
            name = "worker" if number == 1 else f"worker-{number}"
            await start(name, await worker.build_around(engine, worker_config, stack, SystemClock()))
        model = {
            "name": MODEL,
            "directory": directory / "model",
            "context_tokens": self._engines[""].capacity.max_model_len,
        }
        await start(
            "router",
            await router.build(config(RouterConfig, pepper=PEPPER, models=[model], warm_tokenizers=False), stack),
        )
        self._router = servers["router"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with asyncio.timeout(60):
            await self._stack.aclose()
