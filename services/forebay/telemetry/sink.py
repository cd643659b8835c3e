"""Lines to a file, a pipe or a terminal that may fail: a line that cannot be written is counted, and nobody who logs notices.

A full disk, a file-size limit, a closed terminal and a reader that is gone are all `OSError`s of `write`. A reader that has
stopped reading is worse, because `write` waits for it and the event loop with it; so a pipe or terminal is asked first whether it
has room. Lines that are lost are counted, and the first line that can be written again is preceded by one that says how many.
"""

from __future__ import annotations

import io
import os
import select
import stat
import threading
from collections.abc import Callable

# Time for a reader that is merely slow. A reader that was not ready in this time gets no more of it until it reads again.
PATIENCE_S = 0.02
# What poll() promises room for: PIPE_BUF on a pipe; a terminal promises less.
_PIPE_CHUNK = 4096
_OTHER_CHUNK = 512


class LineSink:
    """Writes to one descriptor; any thread may.

    Attributes:
        lost: lines that could not be written since the last one that could.
    """

    def __init__(
        self, descriptor: int | None, notice: Callable[[int], str], on_lost: Callable[[int], None] = lambda lines: None
    ) -> None:
        """Takes a copy of the descriptor, so that nothing else is written to when somebody closes it.

        Args:
            descriptor: where lines go; None, or one that is closed, loses all of them.
            notice: returns the line that says how many lines were lost, without its end.
            on_lost: told of lost lines as they are lost; must not raise.
        """
        self.lost = 0
        self._notice = notice
        self._on_lost = on_lost
        self._lock = threading.RLock()
        self._torn = False
        self._slow = False
        self._poll: select.poll | None = None
        self._chunk = 1 << 30
        try:
            self._fd = -1 if descriptor is None else os.dup(descriptor)
            kind = os.fstat(self._fd).st_mode if descriptor is not None else 0
        except OSError:
            self._fd, kind = -1, 0
        if self._fd >= 0 and not stat.S_ISREG(kind):
            self._chunk = _PIPE_CHUNK if stat.S_ISFIFO(kind) else _OTHER_CHUNK
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

    @property
    def descriptor(self) -> int:
        """The copy; -1 where there is none."""
        return self._fd

    def line(self, text: str) -> None:
        """Writes a line, or counts it as lost."""
        self.text(text + "\n")

    def text(self, text: str) -> None:
        """Writes text as it is, or counts its lines as lost; text that does not end a line is no line."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self.lost and self._put(self._notice(self.lost).encode("utf-8", "backslashreplace") + b"\n"):
                self.lost = 0
            if self.lost or not self._put(data):
                self.lose(data.count(b"\n"))

    def lose(self, lines: int = 1) -> None:
        """Counts lines that could not be written, or not even made."""
        with self._lock:
            self.lost += lines
            self._on_lost(lines)

    def close(self) -> None:
        """Lets go of the descriptor; what comes afterwards is lost."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._poll = -1, None

    def _put(self, data: bytes) -> bool:
        """Writes all of it; False if not, and then what was cut short is ended before the next write."""
        rest = memoryview(b"\n" + data if self._torn else data)
        begun = False
        while rest:
            try:
                written = os.write(self._fd, rest[: self._chunk]) if self._has_room() else 0
            except OSError:
                written = 0
            if not written:
                self._torn = self._torn or begun
                return False
            begun, rest = True, rest[written:]
        self._torn = False
        return True

    def _has_room(self) -> bool:
        if self._poll is None:
            return True
        ready = self._poll.poll(0 if self._slow else PATIENCE_S * 1000)
        self._slow = not ready
        return bool(ready)


class SinkStream(io.TextIOBase):
    """A text stream over a sink, for `sys.stderr` and for consoles: writing never raises."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink
        self._begun = ""

    def write(self, text: str) -> int:
        """Writes whole lines at once and keeps the rest until `flush`."""
        lines, end, rest = (self._begun + text).rpartition("\n")
        self._begun = rest
        if end:
            self._sink.text(lines + end)
        return len(text)

    def flush(self) -> None:
        """Writes what is kept."""
        begun, self._begun = self._begun, ""
        if begun:
            self._sink.text(begun)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Returns the sink's descriptor.

        Raises:
            OSError: there is none.
        """
        if self._sink.descriptor < 0:
            raise OSError("there is no descriptor")
        return self._sink.descriptor

    def isatty(self) -> bool:
        """Returns whether it is a terminal."""
        return self._sink.descriptor >= 0 and os.isatty(self._sink.descriptor)
