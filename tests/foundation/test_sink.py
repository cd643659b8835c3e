"""Lines that cannot be written cost lines: real descriptors that fail in every way a descriptor can."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forebay.telemetry.sink import LineSink, SinkStream


def notice(lost: int) -> str:
    return f"{lost} lost"


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes during the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_device_loses_lines_and_counts_them() -> None:
    counted: list[int] = []
    with open("/dev/full", "wb") as full:
        sink = LineSink(full.fileno(), notice, counted.append)
    sink.line("one")
    sink.text("two\nthree\n")
    assert sink.lost == sum(counted) == 3


def test_a_file_size_limit_cuts_a_line_and_the_next_says_how_many_are_lost(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("ab") as log:
        sink = LineSink(log.fileno(), notice)
    sink.line("whole")
    with file_size_limit(10):
        sink.line("cut short")
        sink.line("lost")
    sink.line("again")
    assert file.read_text() == "whole\ncut \n2 lost\nagain\n"
    assert sink.lost == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EPIPE, errno.EAGAIN, errno.EDQUOT])
def test_every_error_of_a_write_costs_the_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "log"
    with file.open("ab") as log:
        sink = LineSink(log.fileno(), notice)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail)
        sink.line("lost")
    sink.line("again")
    assert file.read_text() == "1 lost\nagain\n"


def test_a_reader_that_is_gone_and_one_that_does_not_read_hold_nobody_up() -> None:
    reader, writer = os.pipe()
    sink = LineSink(writer, notice)
    for _ in range(200):
        sink.line("x" * 1_000)
    lost = sink.lost
    assert lost > 0
    while len(os.read(reader, 1 << 16)) == 1 << 16:
        pass
    sink.line("again")
    assert os.read(reader, 1 << 16).decode().splitlines()[-2:] == [f"{lost} lost", "again"]
    os.close(reader)
    sink.line("to nobody")
    assert sink.lost == 1
    os.close(writer)


def test_nothing_else_is_written_to_when_the_descriptor_is_closed_and_used_again(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    sink = LineSink(writer, notice)
    os.close(writer)
    other = os.open(tmp_path / "ledger", os.O_RDWR | os.O_CREAT)
    sink.line("a line")
    assert (tmp_path / "ledger").read_bytes() == b""
    assert os.read(reader, 100) == b"a line\n"
    os.close(other)
    os.close(reader)


@pytest.mark.parametrize("descriptor", [None, 999])
def test_without_a_descriptor_all_is_lost(descriptor: int | None) -> None:
    sink = LineSink(descriptor, notice)
    sink.line("lost")
    assert sink.lost == 1
    stream = SinkStream(sink)
    print("lost", file=stream, flush=True)
    assert sink.lost == 2
    assert not stream.isatty()


def test_what_no_encoding_has_is_written_escaped(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("ab") as log:
        sink = LineSink(log.fileno(), notice)
    sink.line("half \ud83d of a character")
    assert file.read_text() == "half \\ud83d of a character\n"


def test_a_stream_writes_whole_lines_and_the_rest_when_flushed(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("ab") as log:
        stream = SinkStream(LineSink(log.fileno(), notice))
    stream.write("one\ntw")
    assert file.read_text() == "one\n"
    stream.write("o\nthree")
    stream.flush()
    assert file.read_text() == "one\ntwo\nthree"
