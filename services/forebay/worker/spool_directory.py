"""The spool's directory: what is on the disk, and nothing of what it means. Every call blocks; one thread at a time.

    lock               held by the one worker that uses the directory
    segment-00000012   the records; appended to, and never again after a write to it has failed
    next               the segment after it, until it is whole
    rejected           what can never be sent, for an operator; at most REJECTED_BYTES

A segment begins with all that was live when it was begun. It is written under another name, synced and renamed, and only
then is the one before deleted: so the newest segment alone says everything, and whatever else a crash leaves is debris.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from forebay.config import ConfigError

REJECTED_BYTES = 16 << 20

_SEGMENTS = "segment-" + "[0-9]" * 8


class SpoolDirectory:
    """One directory, used by one process.

    Attributes:
        path: where it is.
        segment_bytes: the length of the segment.
    """

    def __init__(self, path: Path) -> None:
        """Takes the directory, making it if it is missing.

        Raises:
            ConfigError: another worker uses it, or it cannot be written to; the message says what to do.
        """
        self.path = path
        self.segment_bytes = 0
        self._segment: int | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"spool_dir: {path} is in use by another worker; give each worker a directory of its own"
            ) from None
        # A forked engine that outlives this process must not keep the lock from the next one.
        os.register_at_fork(after_in_child=self._let_go)
        self._number = max((int(file.name[-8:]) for file in path.glob(_SEGMENTS)), default=0)

    def read(self) -> bytes:
        """Returns the records; empty for a new directory."""
        return self._file(self._number).read_bytes() if self._number else b""

    def begin_segment(self, records: bytes) -> None:
        """Replaces everything by `records`; durable on return.

        Raises:
            OSError: it failed, and what was there before still counts.
        """
        following = self.path / "next"
        segment = os.open(following, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(segment, records)
            os.fsync(segment)
            os.rename(following, self._file(self._number + 1))
            self._sync_directory()
        except OSError:
            os.close(segment)
            following.unlink(missing_ok=True)
            raise
        if self._segment is not None:
            os.close(self._segment)
        self._segment, self.segment_bytes = segment, len(records)
        self._number += 1
        for file in self.path.glob(_SEGMENTS):
            if file != self._file(self._number):
                file.unlink()

    def append(self, records: bytes) -> None:
        """Writes to the segment's end; not durable before `sync`.

        Raises:
            OSError: it failed; begin another segment.
        """
        assert self._segment is not None, "no segment is begun"
        try:
            _write(self._segment, records)
        except OSError:
            self._cut()
            raise
        self.segment_bytes += len(records)

    def sync(self) -> None:
        """Makes all that was appended durable.

        Raises:
            OSError: it failed; begin another segment, since nobody knows what this one holds.
        """
        assert self._segment is not None, "no segment is begun"
        os.fsync(self._segment)

    def reject(self, lines: bytes) -> bool:
        """Keeps lines for an operator; False when there is no more room for such.

        Raises:
            OSError: it failed.
        """
        rejected = os.open(self.path / "rejected", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(rejected).st_size + len(lines) > REJECTED_BYTES:
                return False
            _write(rejected, lines)
            os.fsync(rejected)
        finally:
            os.close(rejected)
        return True

    def close(self) -> None:
        """Gives the directory up."""
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None
        self._let_go()

    def _file(self, number: int) -> Path:
        return self.path / f"segment-{number:08}"

    def _cut(self) -> None:
        """Takes back a write that failed half-way, if the disk lets us; a reader passes over a torn end anyway."""
        assert self._segment is not None
        try:
            os.ftruncate(self._segment, self.segment_bytes)
        except OSError:
            pass

    def _sync_directory(self) -> None:
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def unusable(path: Path, error: OSError) -> ConfigError:
    """Returns what to tell whoever configured a directory that cannot be used."""
    return ConfigError(
        f"spool_dir: {path} cannot be used: {error.strerror}; give the worker a directory with room that it may write to"
    )


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
