"""A PostgreSQL of the machine's own, on a socket in a folder of its own, for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

# Where Debian puts what its wrappers do not.
_BINARIES = Path("/usr/lib/postgresql")


class PostgresServer:
    """Runs a server for the length of a context; it refuses to run as root, so root runs it as `postgres`."""

    def __init__(self) -> None:
        """Finds the binaries.

        Raises:
            FileNotFoundError: PostgreSQL is not installed.
        """
        folders = [*sorted(_BINARIES.glob("*/bin"), reverse=True), *map(Path, os.environ["PATH"].split(os.pathsep))]
        found = next((folder for folder in folders if (folder / "initdb").exists()), None)
        if found is None:
            raise FileNotFoundError("PostgreSQL is not installed; deploy/scripts/test-system.sh installs it")
        self._binaries = found
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        # A socket's path may have 107 bytes, fewer than a test's folder often has.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._names = count(1)

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            shutil.chown(self._folder, self._user)
        data = str(self._folder / "data")
        self._run("initdb", "-N", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "-D", data, "-o", options, "-l", str(self._folder / "log"), "-w", "start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """Makes an empty database and returns its URL."""
        name = f"test{next(self._names)}"
        self._run("createdb", "-h", str(self._folder), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"

    def _run(self, binary: str, *arguments: str) -> None:
        as_user = {"user": self._user} if os.geteuid() == 0 else {}
        subprocess.run(
            [str(self._binaries / binary), *arguments], check=True, cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, **as_user,  # type: ignore[call-overload]
        )  # fmt: skip
