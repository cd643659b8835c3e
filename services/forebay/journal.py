"""A file of records that outlive the process: each is on the disk before anybody is told of what it says.

Records of one tick of the event loop share one write and one fsync, made in a thread; those that come meanwhile share the next.
A write that fails may have left anything: the next one, a second later at the latest, begins again where the last good one
ended, with all that is not on the disk yet. The worker's spool (`forebay.worker.spool_directory`) keeps far more for far longer
and has segments; this has none, because whoever keeps a journal empties it again.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from forebay.errors import Code, MeshError
from forebay.tasks import fail_on_error
from forebay.telemetry.logs import get_logger

RETRY_AFTER_S = 1.0

log = get_logger("journal")


class Journal:
    """JSON objects, a line each.

    Attributes:
        left: what an earlier life of the process has written. A line that was cut short is not among it: nobody heard of it.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file, making it if it is missing.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self.left: list[dict[str, Any]] = [record for line in whole.splitlines() if (record := _read(line)) is not None]
        self._length = len(whole)
        self._cleared = 0
        self._lines: list[bytes] = []
        self._appended = 0
        self._durable = 0
        self._failure: OSError | None = None
        self._writing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        _sync_directory(path.parent)

    def append(self, **record: object) -> None:
        """Takes a record; it is on the disk once `synced` has returned, or soon without."""
        self._lines.append(json.dumps(record).encode() + b"\n")
        self._appended += 1
        self._begin()

    async def synced(self) -> None:
        """Returns once all that was appended until now is on the disk.

        Raises:
            MeshError: UNAVAILABLE, JOURNAL_UNAVAILABLE; what was appended is written with whatever comes next.
        """
        awaited = self._appended
        while self._durable < awaited:
            await asyncio.shield(self._begin())
            if self._failure is not None:
                raise MeshError(
                    Code.UNAVAILABLE,
                    "JOURNAL_UNAVAILABLE",
                    "what is admitted now could not be kept on the disk; try again",
                    retry_after=RETRY_AFTER_S,
                )

    def clear(self) -> None:
        """Forgets all records: nothing that they say matters any more. On the disk as `append` says."""
        self._lines = [b""]  # from the front again
        self._length = 0
        self._appended += 1
        self._cleared += 1
        self._begin()

    async def close(self) -> None:
        """Writes what is left, if that is possible, and closes the file."""
        if self._lines or self._writing is not None:
            await self._begin()
        if self._retry is not None:
            self._retry.cancel()
        os.close(self._file)

    def _begin(self) -> asyncio.Task[None]:
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="journal")
            self._writing.add_done_callback(fail_on_error)
        return self._writing

    async def _write(self) -> None:
        try:
            while self._lines:
                lines, self._lines, upto, cleared = self._lines, [], self._appended, self._cleared
                try:
                    await asyncio.to_thread(self._store, self._length, b"".join(lines))
                except OSError as error:
                    if cleared == self._cleared:
                        self._lines = lines + self._lines
                    if self._failure is None:
                        log.error("journal unavailable", path=str(self._path), error=error.strerror)
                    self._failure = error
                    if self._retry is not None:
                        self._retry.cancel()
                    self._retry = asyncio.get_running_loop().call_later(RETRY_AFTER_S, self._begin)
                    return
                if self._failure is not None:
                    log.info("journal available again", path=str(self._path))
                self._failure = None
                self._durable = upto
                if cleared == self._cleared:  # else the next write begins at the front
                    self._length += sum(map(len, lines))
        finally:
            self._writing = None

    def _store(self, start: int, content: bytes) -> None:
        os.ftruncate(self._file, start)
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._file, rest, start)
            start, rest = start + written, rest[written:]
        os.fsync(self._file)


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
