"""The event log on a disk: no crash loses an attempt whose start was kept (rule P5).

Everything live is in memory, and each change of it becomes a record. A single writer task takes what has changed since its
last write and writes and syncs it in a thread: so starts, checkpoints, ends and acknowledgements of one moment share one
sync, and a busy disk makes fewer, larger writes. An attempt waits for the sync of its start and for nothing else. An end
goes to metering once it is synced.

After a write has failed the segment cannot be trusted. Nothing begins then; what runs goes on, and what ends is sent to
metering from memory. Once a second the writer tries to begin a new segment with all that is live, which is also how a
segment that has grown is compacted, and how the log begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

from forebay import killpoints
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.tasks import background
from forebay.telemetry.logs import get_logger
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.spool_records import done_record, replay, to_record
from forebay.worker.domain.usage import UsageEvent
from forebay.worker.event_log import RETRY_AFTER_S, Kept, metering_behind
from forebay.worker.spool_directory import SpoolDirectory, unusable

SEGMENT_BYTES = 4 << 20  # a segment is compacted at this length, or at twice what is live in it
GROWTH_BYTES = 512  # by which an attempt's end may be longer than its start
STALL_S = 1.0  # a write that takes longer makes the worker refuse
RETRY_S = 1.0
CLOSE_S = 5.0

log = get_logger("worker")


class SpoolEventLog:
    """An `EventLog` in a directory; `run` must run beside it."""

    def __init__(
        self, directory: SpoolDirectory, limit: int, max_bytes: int, clock: Clock, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Takes up what the directory holds: attempts that had not ended when the worker died end now, as LOST.

        Args:
            directory: where records go.
            limit: attempts that are live at most: running, or with an event that is not acknowledged.
            max_bytes: of their records; the directory holds at most three times as much and a segment.
            clock: for the pauses between attempts to write to a disk that fails.
            segment_bytes: how long a segment grows before it is compacted.

        Raises:
            OSError: the directory cannot be read or written.
        """
        self._directory = directory
        self._limit = limit
        self._max_bytes = max_bytes
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._appended: Callable[[], None] = lambda: None
        self._live: dict[AttemptId, bytes] = {}  # the record that stands, of every attempt that is not done with
        self._live_bytes = 0
        self._running: set[AttemptId] = set()
        self._ended: list[UsageEvent] = []  # not synced yet
        self._events: deque[UsageEvent] = deque()  # to be sent
        self._changes: dict[AttemptId, bytes] = {}  # the records to write next; of an attempt only the last counts
        self._starts: list[Kept] = []  # who waits for them
        self._rejected: list[bytes] = []
        self._problem: str | None = None
        self._writing_since: float | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._recover()

    def _recover(self) -> None:
        found = replay(self._directory.read())
        for event in found.events:
            self._stand(event.id, to_record(event))
        self._events.extend(found.events)
        if found.unreadable:
            log.error("spool has unreadable records; they are kept in `rejected`", records=len(found.unreadable))
            self._directory.reject(b"\n".join(found.unreadable) + b"\n")
        if found.events or found.torn_bytes:
            log.warning("usage events recovered", events=len(found.events), torn_bytes=found.torn_bytes)
        self._directory.begin_segment(b"".join(self._live.values()))
        self._changes.clear()

    # --- the port

    @property
    def trouble(self) -> MeshError | None:
        """Why no attempt can begin now."""
        if self._problem is not None:
            return _unavailable(self._problem)
        if self._writing_since is not None and self._clock.monotonic() - self._writing_since > STALL_S:
            return _unavailable("the disk of the worker's spool does not answer")
        if len(self._live) >= self._limit:
            return metering_behind()
        if self._live_bytes >= self._max_bytes:
            message = "the worker's spool holds as many bytes as it may; ask for another"
            return MeshError(Code.UNAVAILABLE, "SPOOL_FULL", message, retry_after=RETRY_AFTER_S)
        return None

    def begin(self, event: UsageEvent, kept: Kept) -> None:
        """Takes an attempt's start; `kept` is called once it is on the disk."""
        error = self.trouble
        if event.id in self._live:  # recovered from an earlier life
            error = MeshError(Code.ALREADY_EXISTS, "ALREADY_RUN", "the attempt has run on this worker")
        if error is not None:
            kept(error)
            return
        self._stand(event.id, to_record(event))
        self._running.add(event.id)
        self._live_bytes += GROWTH_BYTES
        self._starts.append(kept)

    def withdraw(self, id: AttemptId) -> None:
        """Forgets an attempt."""
        if id in self._running:
            self._end(id)
            self._fall(id)

    def checkpoint(self, events: Iterable[UsageEvent]) -> None:
        """Replaces what stands of attempts."""
        for event in events:
            self._stand(event.id, to_record(event))

    def finish(self, event: UsageEvent) -> None:
        """Takes an attempt's event; it can be sent once it is on the disk."""
        self._end(event.id)
        self._stand(event.id, to_record(event))
        self._ended.append(event)

    def __len__(self) -> int:
        """How many events are not acknowledged."""
        return len(self._events) + len(self._ended)

    def unacknowledged(self, skip: int = 0) -> Iterator[UsageEvent]:
        """Returns those that can be sent, oldest first, without the first `skip`."""
        return islice(self._events, skip, None)

    def acknowledge(self, count: int) -> None:
        """Forgets the `count` oldest."""
        for _ in range(min(count, len(self._events))):
            self._fall(self._events.popleft().id)

    def reject(self, index: int) -> None:
        """Keeps an event in the directory's file `rejected`."""
        self._rejected.append(self._live[self._events[index].id])
        self._wake.set()

    def listen(self, appended: Callable[[], None]) -> None:
        """Has `appended` called after each write that made events ready."""
        self._appended = appended

    # --- what is live

    def _stand(self, id: AttemptId, record: bytes) -> None:
        self._live_bytes += len(record) - len(self._live.get(id, b""))
        self._live[id] = record
        self._change(id, record)

    def _fall(self, id: AttemptId) -> None:
        self._live_bytes -= len(self._live.pop(id))
        self._change(id, done_record(id))

    def _end(self, id: AttemptId) -> None:
        self._running.remove(id)
        self._live_bytes -= GROWTH_BYTES

    def _change(self, id: AttemptId, record: bytes) -> None:
        self._changes[id] = record
        self._wake.set()

    # --- the writer

    async def run(self) -> None:
        """Writes what changes, until `close` and all is written, or cancelled."""
        while not self._closing or self._changes or self._rejected:
            await self._wake.wait()
            self._wake.clear()
            if self._changes or self._rejected or self._problem is not None:
                await self._write()
            if self._problem is not None:
                if self._closing:
                    return
                await self._clock.sleep(RETRY_S)
                self._wake.set()

    def close(self) -> None:
        """Lets `run` end once all is written."""
        self._closing = True
        self._wake.set()

    async def _write(self) -> None:
        changes, starts, ended = self._changes, self._starts, len(self._ended)
        self._changes, self._starts = {}, []
        rejected, self._rejected = self._rejected, []
        length = sum(map(len, changes.values()))
        compact = self._directory.segment_bytes + length > max(self._segment_bytes, 2 * self._live_bytes)
        records = list(self._live.values()) if compact or self._problem else list(changes.values())
        self._writing_since = self._clock.monotonic()
        try:
            await asyncio.to_thread(
                self._store, records, rejected, anew=compact or self._problem is not None, starts=bool(starts)
            )
        except OSError as error:
            self._rejected = rejected + self._rejected
            self._failed(error)
        else:
            if self._problem is not None:
                log.info("spool available again", path=str(self._directory.path))
            self._problem = None
            if ended:
                killpoints.reached("worker.after_finish")
        self._writing_since = None
        self._events.extend(self._ended[:ended])
        del self._ended[:ended]
        for kept in starts:
            kept(None if self._problem is None else _unavailable(self._problem))
        if ended:
            self._appended()

    def _store(self, records: list[bytes], rejected: list[bytes], *, anew: bool, starts: bool) -> None:
        """Writes and syncs, in a thread. What is rejected goes first: its acknowledgement is among the records."""
        if rejected and not self._directory.reject(b"".join(rejected)):
            log.error("rejected usage events dropped: move the file `rejected` away", events=len(rejected))
        if anew:
            self._directory.begin_segment(b"".join(records))
            return
        self._directory.append(b"".join(records))
        if starts:
            killpoints.reached("worker.before_spool_sync")
        self._directory.sync()

    def _failed(self, error: OSError) -> None:
        if self._problem is None:
            log.error("spool unavailable: no attempts are taken", path=str(self._directory.path), error=error.strerror)
        self._problem = f"the worker's spool cannot be written: {error.strerror}"


def _unavailable(message: str) -> MeshError:
    return MeshError(Code.UNAVAILABLE, "SPOOL_UNAVAILABLE", f"{message}; ask for another", retry_after=RETRY_AFTER_S)


@asynccontextmanager
async def open_spool(path: Path, limit: int, max_bytes: int, clock: Clock) -> AsyncIterator[SpoolEventLog]:
    """Runs an event log in a directory; at the end of the block what is left is written.

    Raises:
        ConfigError: the directory cannot be used; the message says what to do.
    """
    directory = SpoolDirectory(path)
    try:
        try:
            spool = SpoolEventLog(directory, limit, max_bytes, clock)
        except OSError as error:
            raise unusable(path, error) from None
        async with background(spool.run(), "spool", ends=True) as writer:
            try:
                yield spool
            finally:
                spool.close()
                await asyncio.wait([writer], timeout=CLOSE_S)
    finally:
        directory.close()
