"""A configuration file: its values, and on which line each of them stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.config.errors import ConfigError
from forebay.yaml_files.document import Document, Place


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One file, read.

    Attributes:
        path: where it is; None for no file at all.
        values: the fields.
    """

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    _document: Document | None = None

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Reads a file.

        Raises:
            ConfigError: it cannot be read, is not YAML, or holds what readers of YAML do not agree on; all of it at once.
        """
        document = Document.read(path, nulls=True)
        if document.problems:
            raise ConfigError("\n".join(document.problems))
        if document.data is None:
            return cls(path)
        if not isinstance(document.data, dict):
            raise ConfigError(f"{path}: must hold `field: value` lines")
        return cls(path, document.data, document)

    def where(self, place: Place) -> str:
        """Returns file and line of a value, or of the nearest value around it; the file alone where it says nothing of it."""
        line = self._document.line_of(place) if self._document is not None else None
        return str(self.path) if line is None else f"{self.path}:{line}"

    def has(self, name: str) -> bool:
        """Returns whether the file sets a field."""
        return name in self.values
