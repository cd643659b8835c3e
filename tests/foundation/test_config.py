"""Configuration: file and environment, and every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field

from forebay.config import ConfigError, ServiceConfig


class Engine(BaseModel):
    kind: str = "simulated"
    seats: int = Field(8, ge=1)


class ExampleConfig(ServiceConfig):
    service: ClassVar[str] = "example"

    size: int = Field(3, ge=1, description="how large")
    engine: Engine = Engine()


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "example.yaml"
    file.write_text("id: example-1\nsize: 5\nengine: {kind: vllm, seats: 2}\n")
    monkeypatch.setenv("FOREBAY_EXAMPLE_SIZE", "7")
    monkeypatch.setenv("FOREBAY_EXAMPLE_ENGINE__SEATS", "4")
    config = ExampleConfig.load(file)
    assert (config.id, config.size, config.engine) == ("example-1", 7, Engine(kind="vllm", seats=4))


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text("id: Example One\nsize: 0\nlisten: nowhere\nsieze: 4\n")
    with pytest.raises(ConfigError) as caught:
        ExampleConfig.load(file)
    message = str(caught.value)
    assert str(file) in message
    assert all(f"  {field}: " in message for field in ("id", "size", "listen", "sieze"))


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "a: b: c",
        "a: 2026-13-45",
        "a: !!bool x",
        "a: !!timestamp x",
        pytest.param("a: " + "[" * 1_000, id="deep"),
        None,
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "example.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"example\.yaml"):
        ExampleConfig.load(file)


def test_help_explains_each_field() -> None:
    lines = ExampleConfig.explain_fields().splitlines()
    assert "  size: how large (default 3)" in lines
    assert any(line.startswith("  id: this replica's name") for line in lines)
    assert "  tls: mutual TLS with the other services; none is for development alone (default none)" in lines
    assert any(line.startswith("    certificate") for line in lines), "what a field is made of stands below it"
