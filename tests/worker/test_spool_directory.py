"""The newest segment says everything, whatever a crash leaves beside it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forebay.config import ConfigError
from forebay.worker import spool_directory
from forebay.worker.spool_directory import SpoolDirectory


@contextmanager
def longest_file(length: int) -> Iterator[None]:
    """Lets no file grow beyond `length` bytes, as a full disk does: a write succeeds in part, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reopened(path: Path) -> bytes:
    directory = SpoolDirectory(path)
    try:
        return directory.read()
    finally:
        directory.close()


def test_it_holds_what_was_begun_and_appended(tmp_path: Path) -> None:
    directory = SpoolDirectory(tmp_path / "new" / "spool")
    assert directory.read() == b""
    directory.begin_segment(b"a\n")
    directory.append(b"b\n")
    directory.sync()
    assert directory.segment_bytes == 4
    directory.close()
    assert reopened(tmp_path / "new" / "spool") == b"a\nb\n"


def test_a_new_segment_replaces_the_one_before(tmp_path: Path) -> None:
    directory = SpoolDirectory(tmp_path)
    for content in (b"a\n", b"b\n", b"c\n"):
        directory.begin_segment(content)
    assert [file.name for file in tmp_path.glob("segment-*")] == ["segment-00000003"]
    assert directory.read() == b"c\n"
    directory.close()


def test_debris_of_a_crash_between_two_segments_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "segment-00000007").write_bytes(b"old\n")
    (tmp_path / "segment-00000008").write_bytes(b"new\n")
    (tmp_path / "next").write_bytes(b"hal")
    directory = SpoolDirectory(tmp_path)
    assert directory.read() == b"new\n"
    directory.begin_segment(b"newer\n")
    directory.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "segment-00000009"]


def test_two_workers_cannot_use_one_directory(tmp_path: Path) -> None:
    directory = SpoolDirectory(tmp_path)
    with pytest.raises(ConfigError, match="in use by another worker; give each worker"):
        SpoolDirectory(tmp_path)
    directory.close()
    SpoolDirectory(tmp_path).close()


_DIES_AND_LEAVES_A_CHILD = """
import os, pathlib, signal, sys
from forebay.worker.spool_directory import SpoolDirectory
directory = SpoolDirectory(pathlib.Path(sys.argv[1]))
worker = os.getpid()
if os.fork():
    os.kill(worker, signal.SIGKILL)
while os.getppid() == worker:
    pass
print("forked", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_an_engines_process_that_outlives_its_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIES_AND_LEAVES_A_CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"forked\n"
        SpoolDirectory(tmp_path).close()
    assert worker.returncode == -9


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=f"spool_dir: .* cannot be used: {os.strerror(errno.ENOTDIR)}; give the worker"
    ):
        SpoolDirectory(tmp_path / "file" / "spool")


def test_a_disk_that_fills_up_in_mid_write_leaves_what_was_there(tmp_path: Path) -> None:
    directory = SpoolDirectory(tmp_path)
    directory.begin_segment(b"a" * 100)
    with longest_file(150), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        directory.append(b"b" * 100)
    assert directory.read() == b"a" * 100
    with longest_file(150), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        directory.begin_segment(b"c" * 200)
    assert directory.read() == b"a" * 100
    assert not (tmp_path / "next").exists()
    directory.begin_segment(b"c" * 200)
    assert directory.read() == b"c" * 200
    directory.close()


def test_what_is_rejected_gathers_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_directory, "REJECTED_BYTES", 8)
    directory = SpoolDirectory(tmp_path)
    assert directory.reject(b"one\n")
    assert directory.reject(b"two\n")
    assert not directory.reject(b"three\n")
    assert (tmp_path / "rejected").read_bytes() == b"one\ntwo\n"
    directory.close()
