"""Where a command finds the mesh and the key to call it with, when it is not told."""

from __future__ import annotations

import json

from forebay.cli.data_dir import DataDir, DataDirError
from forebay.cli.mesh_state import MeshState


def router_address(data: DataDir, given: str | None) -> str:
    """Returns the address to call: the one given, else the first router of the mesh that runs in the data directory.

    Raises:
        DataDirError: neither is there.
    """
    return given or MeshState.load(data.mesh_file).address("router-1")


def tenant_key(data: DataDir, key: str | None, tenant: str | None) -> str:
    """Returns the key to call with: the one given, else the development key of the tenant named.

    Raises:
        DataDirError: neither is there; says which tenants have keys.
    """
    if key:
        return key
    keys = development_keys(data)
    if tenant is None:
        raise DataDirError(
            f"who is calling? Give --key KEY, or --tenant with one of: {', '.join(keys) or '(none here)'}"
        )
    if tenant not in keys:
        raise DataDirError(
            f"{tenant} has no development key in {data.root}; those who have: {', '.join(keys) or '(none)'}"
        )
    return keys[tenant]


def development_keys(data: DataDir) -> dict[str, str]:
    """Returns the sample tenants' keys by tenant; none where the data directory has none.

    Raises:
        DataDirError: the file cannot be read.
    """
    try:
        return dict(json.loads(data.development_keys_file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DataDirError(f"{data.development_keys_file} cannot be read: {error}") from None
