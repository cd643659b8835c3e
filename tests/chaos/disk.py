"""A disk that a test fills: a small file system in memory under a mesh's data; without root a bound on every file's length."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE_BYTES = 256 * 2**20
CHUNK = b"\0" * 2**16


class SmallDisk:
    """A context manager around the life of a mesh whose data is in `folder`.

    Only root may mount a file system. Without root a full disk is a bound on the length of every process's files: they can
    append to none, though they can still make new ones.

    Attributes:
        mounted: whether there is a file system of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self.mounted = os.geteuid() == 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        if self.mounted:
            options = ["-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "forebay-chaos", str(self._folder)]
            done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"no small file system can be mounted, though this is root: {done.stderr.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self._folder)], check=True)

    def fill(self, pids: Iterable[int]) -> None:
        """Leaves no room; `pids` are all who write to it."""
        if not self.mounted:
            for pid in pids:
                bound_files(pid)
            return
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (len(CHUNK), 1):  # the last bytes, too
                with suppress(OSError):
                    while ballast.write(CHUNK[:size]):
                        pass

    def empty(self, pids: Iterable[int]) -> None:
        """Gives the room back."""
        if self.mounted:
            self._ballast.unlink(missing_ok=True)
            return
        for pid in pids:
            bound_files(pid, bound=False)


def bound_files(pid: int, *, bound: bool = True) -> None:
    """Lets a process make no file longer, or lets it again; nothing of one that is gone."""
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 if bound else hard, hard))
