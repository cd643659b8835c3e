"""What the launcher writes is what the services read."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from forebay.cli.data_dir import DataDir
from forebay.cli.first_start import prepare_tenants
from forebay.cli.mesh_config import TIERS, MeshPlan, PoolPlan, plan_processes, served_name
from forebay.config import ServiceConfig
from forebay.metering.config import MeteringConfig
from forebay.quota.config import QuotaConfig
from forebay.router.config import RouterConfig
from forebay.scheduler.config import SchedulerConfig
from forebay.worker.config import WorkerConfig

CONFIGS: dict[str, type[ServiceConfig]] = {
    "router": RouterConfig,
    "quota": QuotaConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
    "metering": MeteringConfig,
}


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "mesh")
    prepare_tenants(data, None)
    return data


def plan(directory: Path, *, engine: str = "simulated", gpu: bool = False, otlp: str | None = None) -> MeshPlan:
    return MeshPlan(2, 2, 3, engine, "some-model", directory, gpu, otlp)


def load(data: DataDir, name: str) -> ServiceConfig:
    return CONFIGS[name.rstrip("-0123456789")].load(data.root / "config" / f"{name}.yaml")


@pytest.mark.parametrize(("engine", "gpu"), [("simulated", False), ("vllm", False), ("vllm", True)])
def test_every_service_takes_its_configuration(data: DataDir, tmp_path: Path, engine: str, gpu: bool) -> None:
    ports = count(20_000)
    specs = plan_processes(data, plan(tmp_path, engine=engine, gpu=gpu), lambda _: next(ports))
    assert [spec.name for spec in specs] == [
        "valkey", "metering", "quota", "scheduler-1", "scheduler-2",
        "worker-1", "worker-2", "worker-3", "router-1", "router-2",
    ]  # fmt: skip
    addresses = {spec.name: spec.address for spec in specs}
    assert len(set(addresses.values())) == len(specs)
    for spec in specs[1:]:
        config = load(data, spec.name)
        assert (config.id, config.listen) == (spec.name, spec.address)
        assert config.trace_file is not None
        assert config.trace_file.parent == data.root / "traces"
        for field in ("quota_address", "metering_address"):
            if hasattr(config, field):
                assert getattr(config, field) == addresses[field.removesuffix("_address")]
        if isinstance(config, RouterConfig | WorkerConfig):
            assert config.scheduler_address == (addresses["scheduler-1"], addresses["scheduler-2"])
        if isinstance(config, QuotaConfig | SchedulerConfig):
            assert config.redis_url == f"redis://{addresses['valkey']}/0"


def test_pools_have_workers_of_their_own_and_the_scheduler_knows_who_lends(data: DataDir, tmp_path: Path) -> None:
    pools = (PoolPlan("gold", 2, lends=True), PoolPlan("batch", 1))
    ports = count(20_000)
    plan_processes(data, replace(plan(tmp_path), workers=1, pools=pools), lambda _: next(ports))
    served = [load(data, f"worker-{n}") for n in range(1, 5)]
    assert [worker.pool for worker in served if isinstance(worker, WorkerConfig)] == ["", "gold", "gold", "batch"]
    scheduler = load(data, "scheduler-1")
    assert isinstance(scheduler, SchedulerConfig)
    assert {name: rules.lends for name, rules in scheduler.limits().pools.items()} == {"gold": True, "batch": False}


def test_router_and_worker_agree_on_model_and_context(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    plan_processes(data, plan(tmp_path, engine="vllm"), lambda _: 20_000)
    router, worker = load(data, "router-1"), load(data, "worker-1")
    assert isinstance(router, RouterConfig)
    assert isinstance(worker, WorkerConfig)
    assert router.models[0].context_tokens == worker.vllm.max_model_len == 512
    assert router.models[0].name == worker.model == "some-model"
    assert router.prefix_block_tokens == worker.vllm.block_size


def test_the_context_is_what_engine_and_model_can_bear(tmp_path: Path) -> None:
    assert plan(tmp_path, engine="vllm").context_tokens == 1_024
    assert plan(tmp_path, engine="vllm", gpu=True).context_tokens == 8_192
    assert plan(tmp_path).context_tokens == 8_192
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2_048}))
    assert plan(tmp_path, engine="vllm", gpu=True).context_tokens == 2_048


def test_traces_go_to_the_endpoint_where_there_is_one(data: DataDir, tmp_path: Path) -> None:
    plan_processes(data, plan(tmp_path, otlp="http://127.0.0.1:4317"), lambda _: 20_000)
    config = load(data, "router-1")
    assert config.otlp_endpoint == "http://127.0.0.1:4317"
    assert config.trace_file is None


def test_configurations_are_for_the_owner_alone(data: DataDir, tmp_path: Path) -> None:
    plan_processes(data, plan(tmp_path), lambda _: 20_000)
    for file in (data.root / "config").iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_callers_stop_before_those_they_call(data: DataDir, tmp_path: Path) -> None:
    specs = plan_processes(data, plan(tmp_path), lambda _: 20_000)
    order = [spec.name.rstrip("-0123456789") for spec in sorted(specs, key=lambda spec: spec.tier)]
    assert list(dict.fromkeys(order)) == list(TIERS)


def test_valkey_keeps_its_data_and_writes_nowhere_else(data: DataDir, tmp_path: Path) -> None:
    argv = plan_processes(data, plan(tmp_path), lambda _: 20_001)[0].argv
    options = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert options["--bind"] == "127.0.0.1"
    assert Path(options["--dir"]).is_absolute()
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")


def test_names_that_models_are_served_under(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert served_name("wheel:smollm2") == "smollm2"
    assert served_name("simulated") == "simulated"
    assert served_name(str(tmp_path / "mine")) == "mine"
    assert served_name("someone/some-model") == "someone/some-model"
