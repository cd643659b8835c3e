"""What runs in a mesh on one machine: the configuration of each process, and the process itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forebay.cli.certificates import certify
from forebay.cli.data_dir import DataDir, write_file
from forebay.cli.health import service_health, valkey_health
from forebay.cli.operator import operator_certificate
from forebay.cli.supervisor import ProcessSpec
from forebay.cli.valkey import valkey_binary
from forebay.config import TlsConfig
from forebay.rpc.allowlist import EDGE

TIERS = ("router", "worker", "scheduler", "quota", "metering", "valkey")
# How long requests that run may go on when their router is stopped.
ROUTER_DRAIN_S = 120.0
# When all of the mesh is stopped the routers go first, and workers have nothing left; one that is stopped alone hands over.
DRAIN_S = {"worker": 3.0}
DRAIN_DEFAULT_S = 0.5
# Beyond the drain. vLLM takes a while to let go of a model.
STOP_WITHIN_S = {"worker": 25.0}
STOP_WITHIN_DEFAULT_S = 12.0
# Prompt and completion together: what a processor can bear, and what a GPU is asked for at most unless told otherwise.
CPU_CONTEXT = 1_024
MOST_CONTEXT = 8_192


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A dedicated pool, with workers of its own that it lends or does not."""

    name: str
    workers: int
    lends: bool = False


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """What is to run.

    Attributes:
        workers: of the shared pool.
        engine: vllm or simulated.
        model: the name that clients use.
        model_directory: where its files are.
        gpu: whether vLLM finds a GPU here.
        otlp_endpoint: where traces go; None for files in the data directory.
        pools: dedicated pools, with workers beside those of the shared one.
        router_drain_s: how long requests that run may go on when their router is stopped.
    """

    routers: int
    schedulers: int
    workers: int
    engine: str
    model: str
    model_directory: Path
    gpu: bool
    otlp_endpoint: str | None
    pools: tuple[PoolPlan, ...] = ()
    router_drain_s: float = ROUTER_DRAIN_S

    @property
    def pool_of_workers(self) -> list[str]:
        """The pool that each worker serves, in order of number; empty for the shared one."""
        return [""] * self.workers + [pool.name for pool in self.pools for _ in range(pool.workers)]

    @property
    def scheduler_names(self) -> list[str]:
        """The schedulers, in order of number."""
        return [f"scheduler-{n}" for n in range(1, self.schedulers + 1)]

    @property
    def names(self) -> list[str]:
        """All processes, in the order of starting."""
        workers = [f"worker-{n}" for n in range(1, len(self.pool_of_workers) + 1)]
        routers = [f"router-{n}" for n in range(1, self.routers + 1)]
        return ["valkey", "metering", "quota", *self.scheduler_names, *workers, *routers]

    @property
    def context_tokens(self) -> int:
        """What router and workers agree on: the model's own bound, up to what the engine can bear here."""
        most = CPU_CONTEXT if self.engine == "vllm" and not self.gpu else MOST_CONTEXT
        try:
            config = json.loads((self.model_directory / "config.json").read_bytes())
            return min(most, int(config["max_position_embeddings"]))
        except (OSError, ValueError, KeyError, TypeError):
            return most


def served_name(reference: str) -> str:
    """Returns the name under which a model is served: a directory's last part, else the reference without `wheel:`."""
    path = Path(reference).expanduser()
    return path.resolve().name if path.is_dir() else reference.removeprefix("wheel:")


def plan_processes(data: DataDir, plan: MeshPlan, take_port: Callable[[str], int]) -> list[ProcessSpec]:
    """Writes the configuration of every process and returns the processes in the order of starting.

    Args:
        data: where configurations, logs and data go.
        plan: what is to run.
        take_port: returns a port for a process, by its name.
    """
    schedulers = plan.scheduler_names
    workers = {f"worker-{n}": pool for n, pool in enumerate(plan.pool_of_workers, start=1)}
    names = plan.names
    addresses = {name: f"127.0.0.1:{take_port(name)}" for name in names}
    redis_url = f"redis://{addresses['valkey']}/0"
    scheduler_address = [addresses[name] for name in schedulers]
    fields: dict[str, dict[str, Any]] = {
        "metering": {"ledger_path": str(data.folder("ledger") / "ledger.sqlite")},
        "quota": {
            "redis_url": redis_url,
            "metering_address": addresses["metering"],
            "policy_url": f"sqlite:///{data.folder('policies')}/policies.sqlite",
            "tenants_file": str(data.tenants_file),
            "keys_file": str(data.keys_file),
            "journal_file": str(data.folder("quota") / "journal"),
            "pepper_file": str(data.pepper_file),
        },
        "scheduler": {
            "redis_url": redis_url,
            "pools": [{"name": pool.name, "lends": pool.lends} for pool in plan.pools],
        },
        "worker": {
            "scheduler_address": scheduler_address,
            "quota_address": addresses["quota"],
            "metering_address": addresses["metering"],
            "model": plan.model,
            "model_directory": str(plan.model_directory),
            "engine": plan.engine,
            plan.engine: _engine(plan),
        },
        "router": {
            "quota_address": addresses["quota"],
            "scheduler_address": scheduler_address,
            "metering_address": addresses["metering"],
            "pepper_file": str(data.pepper_file),
            "models": [
                {"name": plan.model, "directory": str(plan.model_directory), "context_tokens": plan.context_tokens}
            ],
        },
    }
    specs = [_valkey(data, addresses["valkey"])]
    operator = operator_certificate(data)
    certify(data.folder("certificates"), EDGE, f"{EDGE}-1")  # for a proxy that somebody puts in front: deploy/envoy/
    for name in names[1:]:
        service = name.rstrip("-0123456789")
        tls = certify(data.folder("certificates"), service, name)
        common = {
            "id": name,
            "tls": tls,
            "listen": addresses[name],
            "drain_s": plan.router_drain_s if service == "router" else DRAIN_S.get(service, DRAIN_DEFAULT_S),
        }
        if service == "worker":
            common["spool_dir"] = str(data.folder("spool") / name)
            common["pool"] = workers[name]
        if service == "router":
            common["journal_file"] = str(data.folder("router") / f"{name}.journal")
        if plan.otlp_endpoint:
            common["otlp_endpoint"] = plan.otlp_endpoint
        else:
            common["trace_file"] = str(data.folder("traces") / f"{service}-{{pid}}.jsonl")
        specs.append(_service(data, name, service, addresses[name], common | fields[service], operator))
    return specs


def _engine(plan: MeshPlan) -> dict[str, Any]:
    """Returns the engine's section of a worker's configuration; what it leaves out suits a processor."""
    section: dict[str, Any] = {"max_model_len": plan.context_tokens}
    if plan.engine == "vllm" and plan.gpu:
        section |= {"dtype": "auto", "kv_cache_memory_bytes": None, "enforce_eager": False, "max_num_seqs": 256}
    return section


def _service(
    data: DataDir, name: str, service: str, address: str, fields: dict[str, Any], operator: TlsConfig
) -> ProcessSpec:
    file = data.folder("config") / f"{name}.yaml"
    write_file(file, "# Written by `forebay up` at each start.\n" + yaml.safe_dump(fields, sort_keys=False), 0o600)

    async def healthy() -> bool:
        return await service_health(name, address, operator) == "SERVING"

    return ProcessSpec(
        name=name,
        tier=TIERS.index(service),
        argv=(sys.executable, "-m", f"forebay.{service}", "--config", str(file)),
        address=address,
        log=data.log_file(name),
        healthy=healthy,
        doing="loading the model" if service == "worker" else "starting",
        stop_within_s=fields["drain_s"] + STOP_WITHIN_S.get(service, STOP_WITHIN_DEFAULT_S),
    )


def _valkey(data: DataDir, address: str) -> ProcessSpec:
    """Everything is said on the command line: no file decides, and none is rewritten. Every write is kept within a second."""

    async def healthy() -> bool:
        return await valkey_health(address) == "SERVING"

    host, _, port = address.rpartition(":")
    return ProcessSpec(
        name="valkey",
        tier=TIERS.index("valkey"),
        argv=(
            str(valkey_binary()), "--bind", host, "--port", port, "--dir", str(data.folder("valkey")),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "no",
        ),
        address=address,
        log=data.log_file("valkey"),
        healthy=healthy,
        stop_within_s=STOP_WITHIN_DEFAULT_S,
    )  # fmt: skip
