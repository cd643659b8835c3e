"""The data directory: one launcher at a time, files whole or not at all, secrets for the owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forebay.cli.data_dir import DataDir, DataDirError, write_file
from forebay.cli.mesh_state import MeshState, ModelState, ProcessState


def test_a_second_launcher_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "mesh")
    with data.locked(), pytest.raises(DataDirError, match=rf"already running .*{os.getpid()}.*--data"), data.locked():
        pass
    with data.locked():
        pass


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="choose another folder"), DataDir(tmp_path / "file" / "mesh").locked():
        pass


def test_a_secret_file_is_never_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_file(file, "old", 0o600)
    write_file(file, "new", 0o600)
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_the_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = MeshState(
        ready=True,
        model=ModelState("smollm2", "/models/smollm2"),
        processes={
            "router-2": ProcessState(12, "127.0.0.1:20002", 0),
            "router-1": ProcessState(11, "127.0.0.1:20001", 3),
            "quota": ProcessState(13, "127.0.0.1:20003", 0),
        },
    )
    state.save(tmp_path / "mesh.json")
    assert MeshState.load(tmp_path / "mesh.json") == state
    assert state.model.name == "smollm2"
    assert state.routers == ["127.0.0.1:20001", "127.0.0.1:20002"]
    assert state.address("quota") == "127.0.0.1:20003"


def test_without_a_mesh_the_user_is_told_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="forebay up"):
        MeshState.load(tmp_path / "mesh.json")


@pytest.mark.parametrize("text", ["", "[]", '{"ready": true}', '{"ready": true, "processes": {"quota": {"pid": 1}}}'])
def test_a_broken_state_file_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.json").write_text(text)
    with pytest.raises(DataDirError, match="restart the mesh"):
        MeshState.load(tmp_path / "mesh.json")
