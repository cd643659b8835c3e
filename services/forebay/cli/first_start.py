"""What a new mesh is given: the sample tenants, a key for each of them, and the pepper that the keys' hashes are made with."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

import yaml

from forebay.cli.access import development_keys
from forebay.cli.data_dir import DataDir, DataDirError, write_file
from forebay.policy.keys import hash_key, new_key
from forebay.yaml_files.document import Document

# Beside this module in a wheel, in deploy/ of a checkout.
_SAMPLES = (Path(__file__).with_name("tenants.yaml"), Path(__file__).parents[3] / "deploy" / "config" / "tenants.yaml")


def prepare_tenants(data: DataDir, tenants_file: Path | None) -> dict[str, str]:
    """Writes the files of tenants, keys and pepper where they are missing; returns the development keys by tenant.

    What is there stays once the mesh has been ready: then the files are the operator's. Until then a tenants file that is given
    takes the place of the one before, which may be why the mesh did not come up.

    Args:
        data: the data directory.
        tenants_file: the tenants of a new mesh; None for the sample.

    Raises:
        DataDirError: the tenants cannot be read, or a new file was given to a mesh that has its tenants.
    """
    replaces = tenants_file is not None and data.first_start_file.exists()
    if tenants_file is not None and data.tenants_file.exists() and not replaces:
        raise DataDirError(
            f"this mesh has its tenants already: edit {data.tenants_file}, or choose a new folder with --data"
        )
    if replaces or not data.tenants_file.exists():
        source = tenants_file or next(file for file in _SAMPLES if file.exists())
        _tenant_ids(source)
        text = source.read_text(encoding="utf-8")
        if replaces:
            _forget_tenants(data)
        write_file(data.first_start_file, "this mesh has not been ready yet\n")
        write_file(data.tenants_file, text)
    if not data.pepper_file.exists():
        write_file(data.pepper_file, secrets.token_hex(32) + "\n", 0o600)
    if not data.keys_file.exists():
        _write_keys(data)
    return development_keys(data)


def came_up(data: DataDir) -> None:
    """Takes note that the mesh has been ready: from now on its tenants are the operator's."""
    data.first_start_file.unlink(missing_ok=True)


def _forget_tenants(data: DataDir) -> None:
    """Removes what was made of a first tenants file: tenants, keys, and what quota may have imported."""
    shutil.rmtree(data.root / "policies", ignore_errors=True)
    for file in (data.tenants_file, data.keys_file, data.development_keys_file):
        file.unlink(missing_ok=True)


def _write_keys(data: DataDir) -> None:
    pepper = data.pepper_file.read_bytes().strip()
    keys: dict[str, str] = {}
    entries = []
    for tenant in _tenant_ids(data.tenants_file):
        key_id, keys[tenant] = new_key()
        digest = hash_key(pepper, keys[tenant]).hex()
        entries.append({"key_id": key_id, "tenant": tenant, "hash": digest, "display_name": "made on first start"})
    # The hashes go last: without them all of this is done anew.
    write_file(data.development_keys_file, json.dumps(keys, indent=2) + "\n", 0o600)
    head = "# Hashes of the tenants' keys; the keys themselves are stored nowhere but in dev-keys.json.\n"
    write_file(data.keys_file, head + yaml.safe_dump({"keys": entries}, sort_keys=False, default_style='"'), 0o600)


def _tenant_ids(file: Path) -> list[str]:
    """Returns the tenants' names in their order; quota checks the rest."""
    document = Document.read(file)
    if document.problems:
        raise DataDirError("\n  ".join([f"{file} is no tenants file that can be used:", *document.problems]))
    tenants = document.data.get("tenants") if isinstance(document.data, dict) else None
    if not isinstance(tenants, dict):
        raise DataDirError(f"{file} is no tenants file: it must hold `tenants:`, as deploy/config/tenants.yaml does")
    return list(tenants)
