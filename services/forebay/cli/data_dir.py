"""The folder of one mesh: what is where in it, who may use it, and how files in it are written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEFAULT_DATA = Path(".forebay")


class DataDirError(Exception):
    """The folder cannot be used; the message says why and what to do."""


class DataDir:
    """Where everything of one mesh is.

    ```
    launcher.lock    held by the launcher while it runs
    mesh.json        the running mesh: addresses and process ids
    ports.json       the port of each process, which it gets again at the next start
    first-start      there until the mesh has been ready once; until then --tenants replaces its tenants
    tenants.yaml     tenants as they are imported; copied from the sample on first start, then the operator's
    keys.yaml        hashes of the tenants' keys
    dev-keys.json    the sample tenants' keys themselves, for the owner's eyes
    pepper           the secret that the hashes are made with
    config/          one file for each process, written anew at each start
    logs/  traces/  valkey/  ledger/  policies/
    ```
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.mesh_file = self.root / "mesh.json"
        self.ports_file = self.root / "ports.json"
        self.first_start_file = self.root / "first-start"
        self.tenants_file = self.root / "tenants.yaml"
        self.keys_file = self.root / "keys.yaml"
        self.development_keys_file = self.root / "dev-keys.json"
        self.pepper_file = self.root / "pepper"

    def folder(self, name: str) -> Path:
        """Returns a folder inside, made if needed."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log_file(self, process: str) -> Path:
        """Returns where a process's output goes."""
        return self.folder("logs") / f"{process}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other launcher out of this folder during the block; the kernel unlocks it if this process dies.

        Raises:
            DataDirError: another launcher has it, or it cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.root / "launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(
                f"{self.root} cannot be used: {error.strerror}; choose another folder with --data"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode() or "unknown"
            os.close(lock)
            raise DataDirError(
                f"a mesh is already running in {self.root} (launcher process {holder}); "
                "stop it first, or start another one with --data DIR"
            ) from None
        try:
            with suppress(OSError):  # a full disk; whoever comes is told without the number
                os.truncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
            yield
        finally:
            os.close(lock)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replaces a file in one step: a reader sees the old text or the new one, and a secret is never readable by others.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
