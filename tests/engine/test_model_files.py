"""Model references and where they lead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from forebay.errors import Code, MeshError
from forebay.worker import model_files, prepare_model, simulated_model
from forebay.worker.model_files import model_directory


def test_the_simulated_model_is_made_once(tmp_path: Path) -> None:
    place = model_directory("simulated", tmp_path)
    made = (place / "tokenizer.json").stat().st_mtime_ns
    assert model_directory("simulated", tmp_path) == place
    assert (place / "tokenizer.json").stat().st_mtime_ns == made


def test_what_is_not_finished_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(place: Path) -> None:
        (place / "half").touch()
        raise OSError("the disk is full")

    monkeypatch.setattr(simulated_model, "build", build)
    with pytest.raises(OSError, match="full"):
        model_directory("simulated", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    assert (model_directory("simulated", tmp_path) / "config.json").is_file()


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert model_directory(str(tmp_path), tmp_path / "cache") == tmp_path


@pytest.mark.parametrize("reference", ["wheel:other", "/nowhere/at/all", "./nowhere", "word", "a/b/c", ""])
def test_a_reference_that_leads_nowhere_is_said_so(reference: str, tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        model_directory(reference, tmp_path)
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_give_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reference in ("owner/model", "no owner/model"):
        with pytest.raises(MeshError, match="hub"):
            model_directory(reference, tmp_path)


def test_a_missing_wheel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeshError, match=r"forebay\[cpu\]"):
        model_directory("wheel:smollm2", tmp_path)


def test_the_command_prints_the_directory_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_model", "simulated", "--cache", str(tmp_path)])
    prepare_model.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "simulated")
    monkeypatch.setattr(sys, "argv", ["prepare_model", "wheel:other", "--cache", str(tmp_path)])
    with pytest.raises(SystemExit, match="MODEL_NOT_FOUND"):
        prepare_model.main()
