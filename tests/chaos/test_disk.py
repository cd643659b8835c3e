"""A disk is full for whoever writes to it, and a process can make no file longer, until it is over."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .disk import SmallDisk, bound_files

# Appends to a file whenever it is asked to, and says how that went.
WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "a") as file:
            file.write(line)
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def writer(tmp_path: Path, disk: SmallDisk) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "disk" / "file")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate()


def written(writer: subprocess.Popen[str]) -> str:
    assert writer.stdin
    assert writer.stdout
    writer.stdin.write("x" * 5_000 + "\n")
    writer.stdin.flush()
    return writer.stdout.readline().strip()


@pytest.mark.slow
def test_a_full_disk_takes_nothing_until_it_has_room_again(disk: SmallDisk, writer: subprocess.Popen[str]) -> None:
    assert disk.mounted == (os.geteuid() == 0)
    assert written(writer) == "written"
    disk.fill([writer.pid])
    assert written(writer) == os.strerror(errno.ENOSPC if disk.mounted else errno.EFBIG)
    disk.empty([writer.pid])
    assert written(writer) == "written"


def test_a_process_can_make_no_file_longer_for_a_time(writer: subprocess.Popen[str]) -> None:
    bound_files(writer.pid)
    assert written(writer) == os.strerror(errno.EFBIG)
    bound_files(writer.pid, bound=False)
    assert written(writer) == "written"
