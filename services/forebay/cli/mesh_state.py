"""mesh.json: what is running, for tools that come later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.cli.data_dir import DataDirError, write_file


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of a mesh.

    Attributes:
        pid: its process id; between a death and the restart, that of the dead.
        address: host:port, the same over restarts.
        restarts: how often it was started again.
        last_end: how the life before ended, in words; empty for none.
    """

    pid: int
    address: str
    restarts: int
    last_end: str = ""


@dataclass(frozen=True, slots=True)
class ModelState:
    """The model that the mesh serves: its name for clients, and where its files are."""

    name: str
    directory: str


@dataclass(frozen=True, slots=True)
class MeshState:
    """A running mesh.

    Attributes:
        ready: whether all processes are healthy; false from a death until the restarted one is healthy too.
        model: what it serves.
        processes: by name, such as router-1.
    """

    ready: bool
    model: ModelState
    processes: dict[str, ProcessState]

    @property
    def routers(self) -> list[str]:
        """Addresses of the routers, in order of their names."""
        return [process.address for name, process in sorted(self.processes.items()) if name.startswith("router-")]

    def address(self, name: str) -> str:
        """Returns the address of one process.

        Raises:
            DataDirError: the mesh has no such process.
        """
        if name not in self.processes:
            raise DataDirError(f"this mesh has no {name}")
        return self.processes[name].address

    def save(self, file: Path) -> None:
        """Writes the file in one step."""
        values = {
            "ready": self.ready,
            "model": asdict(self.model),
            "routers": self.routers,
            "processes": {name: asdict(process) for name, process in self.processes.items()},
        }
        write_file(file, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, file: Path) -> MeshState:
        """Reads the file.

        Raises:
            DataDirError: there is none, or it does not hold a mesh; says what to do.
        """
        try:
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            processes = {name: ProcessState(**process) for name, process in values["processes"].items()}
            return cls(values["ready"], ModelState(**values["model"]), processes)
        except FileNotFoundError:
            raise DataDirError(
                f"no mesh is running in {file.parent}; start one with `forebay up`, or say where it is with --data DIR"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataDirError(f"{file} cannot be read; restart the mesh, which writes it anew") from None
