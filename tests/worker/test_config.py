"""A worker's configuration names what is wrong with it, and makes the engine that it means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from forebay.config import ConfigError
from forebay.worker.config import WorkerConfig
from forebay.worker.engines import make_engine

GOOD = {
    "id": "worker-1",
    "model": "tiny",
    "engine": "simulated",
    "scheduler_address": "127.0.0.1:1",
    "quota_address": "127.0.0.1:2",
    "metering_address": "127.0.0.1:3",
}


def load(tmp_path: Path, **changes: object) -> WorkerConfig:
    file = tmp_path / "worker.yaml"
    file.write_text(yaml.safe_dump(GOOD | changes))
    return WorkerConfig.load(file)


def test_a_simulated_engine_is_made_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_WORKER_SIMULATED__FREE", "true")
    monkeypatch.setenv("FOREBAY_WORKER_SIMULATED__WINDOW_TOKENS", "8")
    engine = make_engine(load(tmp_path, simulated={"kv_tokens": 9000}))
    assert (engine.kind, engine.capacity.kv_tokens, engine.window_tokens) == ("simulated", 9000, 8)


def test_of_schedulers_there_may_be_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path).scheduler_address == ("127.0.0.1:1",)
    assert load(tmp_path, scheduler_address=["a:1", "b:2"]).scheduler_address == ("a:1", "b:2")
    monkeypatch.setenv("FOREBAY_WORKER_SCHEDULER_ADDRESS", "c:3, d:4")
    assert load(tmp_path).scheduler_address == ("c:3", "d:4")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"engine": "vllm"}, "model_directory must be given"),
        ({"simulated": {"kv_tokens": 100}}, "kv_tokens must hold max_model_len"),
        ({"scheduler_address": "here"}, "host:port"),
        ({"scheduler_address": []}, "scheduler_address"),
        ({"advertise": "there"}, "host:port"),
        ({"listen": "[::]:7001"}, "advertise must be given"),
        ({"simulated": {"speeed": 2}}, "speeed"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, **changes)
