"""What a new mesh is given, and what a later start leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from forebay.cli.data_dir import DataDir, DataDirError
from forebay.cli.first_start import came_up, prepare_tenants
from forebay.policy.keys import hash_key, parse_key_id
from forebay.quota.policy_files import PolicyFiles


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "mesh")


def test_quota_reads_what_the_first_start_writes(data: DataDir) -> None:
    keys = prepare_tenants(data, None)
    pepper = data.pepper_file.read_bytes().strip()
    policies = PolicyFiles(data.tenants_file, data.keys_file, pepper).load()
    assert {tenant: policy.plan for tenant, policy in policies.tenants.items()} == {
        "acme": "enterprise",
        "globex": "standard",
        "initech": "basic",
    }
    assert list(keys) == ["acme", "globex", "initech"]
    for tenant, key in keys.items():
        key_id = parse_key_id(key)
        assert key_id is not None
        assert policies.keys[key_id].tenant_id == tenant
        assert policies.keys[key_id].hash == hash_key(pepper, key)


def test_tenants_with_names_that_readers_of_yaml_mistake(data: DataDir, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text('tenants: {"1e3": {plan: basic}, "y": {plan: basic}, "010": {plan: basic}, "no": {plan: basic}}')
    assert list(prepare_tenants(data, file)) == ["1e3", "y", "010", "no"]
    pepper = data.pepper_file.read_bytes().strip()
    policies = PolicyFiles(data.tenants_file, data.keys_file, pepper).load()
    assert {key.tenant_id for key in policies.keys.values()} == {"1e3", "y", "010", "no"}
    file.write_text("tenants:\n  no: {plan: basic}\n")
    with pytest.raises(DataDirError, match=r":2: tenants\.no: no is a truth value for some readers"):
        prepare_tenants(DataDir(tmp_path / "another"), file)


def test_secrets_are_for_the_owner_alone(data: DataDir) -> None:
    keys = prepare_tenants(data, None)
    for file in (data.pepper_file, data.keys_file, data.development_keys_file):
        assert file.stat().st_mode & 0o077 == 0
    assert not any(key in data.keys_file.read_text() for key in keys.values())


def test_a_second_start_changes_nothing(data: DataDir) -> None:
    keys = prepare_tenants(data, None)
    data.tenants_file.write_text(data.tenants_file.read_text() + "# mine\n")
    before = {file: file.read_bytes() for file in data.root.iterdir()}
    assert prepare_tenants(data, None) == keys
    assert {file: file.read_bytes() for file in data.root.iterdir()} == before


def test_tenants_of_ones_own(data: DataDir, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"tenants": {"bench": {"plan": "enterprise"}}}))
    assert list(prepare_tenants(data, own)) == ["bench"]
    came_up(data)
    with pytest.raises(DataDirError, match="has its tenants already"):
        prepare_tenants(data, own)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"tenants",
        b"tenants:",
        b": :",
        b"- acme",
        b"\xff",
        b"tenants: {a: 2026-13-45}",
        pytest.param(b"[" * 10_000, id="deep"),
    ],
)
def test_a_file_that_holds_no_tenants_is_refused_and_nothing_is_written(
    data: DataDir, tmp_path: Path, text: bytes
) -> None:
    own = tmp_path / "own.yaml"
    own.write_bytes(text)
    with pytest.raises(DataDirError, match=r"own\.yaml is no tenants file"):
        prepare_tenants(data, own)
    assert not data.tenants_file.exists()


def test_a_first_start_that_failed_takes_a_corrected_file(data: DataDir, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("tenants: {acme: {plan: no-such-plan}}\n")
    prepare_tenants(data, own)
    stale = data.folder("policies") / "policies.sqlite"
    stale.write_bytes(b"what quota imported")
    own.write_text("tenants: {bench: {plan: enterprise}}\n")
    assert list(prepare_tenants(data, own)) == ["bench"]
    assert data.tenants_file.read_text() == own.read_text()
    assert not stale.exists()
    pepper = data.pepper_file.read_bytes().strip()
    assert list(PolicyFiles(data.tenants_file, data.keys_file, pepper).load().tenants) == ["bench"]
    assert list(prepare_tenants(data, data.tenants_file)) == ["bench"], "its own copy, edited"
    came_up(data)
    with pytest.raises(DataDirError, match="has its tenants already"):
        prepare_tenants(data, own)


def test_a_second_file_that_is_wrong_leaves_the_first_as_it_was(data: DataDir, tmp_path: Path) -> None:
    keys = prepare_tenants(data, None)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("tenants:")
    with pytest.raises(DataDirError, match="no tenants file"):
        prepare_tenants(data, wrong)
    assert prepare_tenants(data, None) == keys
