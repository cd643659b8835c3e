"""The spool: what was kept is accounted for once, whichever write a crash or a full disk breaks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.config import ConfigError
from forebay.errors import MeshError
from forebay.lifecycle import background
from forebay.testing.clock import FakeClock
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.usage import Outcome, UsageEvent
from forebay.worker.spool_directory import SpoolDirectory
from forebay.worker.spool_event_log import RETRY_S, STALL_S, SpoolEventLog, open_spool

from .doubles import attempt_id, event
from .peers import within


class Crash(BaseException):
    """The process dies here."""


class FaultyDirectory(SpoolDirectory):
    """A directory on a disk that can be full, or end the process in the middle of a write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.full = False
        self.crash: int | None = None  # at which byte of the next write
        self.appends = self.segments = 0

    def begin_segment(self, records: bytes) -> None:
        self.segments += 1
        if self.crash is not None:
            (self.path / "next").write_bytes(records[: self.crash])
            raise Crash
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().begin_segment(records)

    def append(self, records: bytes) -> None:
        self.appends += 1
        if self.crash is not None:
            super().append(records[: self.crash])
            raise Crash
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(records)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs what awaits nothing."""
    with contextlib.suppress(StopIteration):
        work.send(None)
        raise AssertionError("it waits for something")


@pytest.fixture(autouse=True)
def inline() -> Iterator[None]:
    """Has threads' work done at once, so that a history is the same in each run, and does not wait for a real disk."""

    async def call(work: Callable[..., None], *args: Any, **rest: Any) -> None:
        work(*args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", call)
        patch.setattr(os, "fsync", lambda file: None)
        yield


class Life:
    """One life of a worker with its spool, and what it was told."""

    def __init__(self, path: Path, *, limit: int = 100, max_bytes: int = 1 << 20, segment_bytes: int = 4096) -> None:
        self.directory = FaultyDirectory(path)
        self.clock = FakeClock()
        self.log = SpoolEventLog(self.directory, limit, max_bytes, self.clock, segment_bytes)
        self.answers: dict[AttemptId, MeshError | None] = {}
        self.notices = 0
        self.log.listen(self._notice)

    def _notice(self) -> None:
        self.notices += 1

    def begin(self, number: int) -> None:
        id = attempt_id(number)
        self.log.begin(event(number), lambda error: self.answers.__setitem__(id, error))

    def write(self) -> None:
        """Does what the writer would do next."""
        run(self.log._write())

    def events(self) -> list[UsageEvent]:
        return list(self.log.unacknowledged())

    def reason(self, number: int) -> str | None:
        error = self.answers[attempt_id(number)]
        return None if error is None else error.reason


def done(number: int, tokens: int = 5) -> UsageEvent:
    return event(number, Outcome.COMPLETED, completion_to=tokens)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def next_life(life: Life, path: Path) -> Life:
    life.directory.close()
    return Life(path)


# --- a crash


def test_an_attempt_waits_until_its_start_is_on_the_disk_and_shares_the_write(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.begin(2)
    assert not life.answers
    life.write()
    assert (life.reason(1), life.reason(2)) == (None, None)
    assert life.directory.appends == 1


def test_what_had_not_ended_is_lost_with_its_last_checkpoint(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.begin(2)
    life.write()
    life.log.checkpoint([event(1, completion_to=3)])
    life.write()
    life.log.checkpoint([event(1, completion_to=4)])  # not written any more
    after = next_life(life, path)
    assert after.events() == [event(2), event(1, completion_to=3)]
    assert {e.outcome for e in after.events()} == {Outcome.LOST}


def test_what_was_not_acknowledged_is_sent_again_and_nothing_else(path: Path) -> None:
    life = Life(path)
    for number in (1, 2, 3):
        life.begin(number)
    life.write()
    for number in (1, 2):
        life.log.finish(done(number))
    life.log.withdraw(attempt_id(3))
    assert life.events() == [], "not before they are on the disk"
    life.write()
    assert life.events() == [done(1), done(2)]
    assert life.notices == 1
    life.log.acknowledge(1)
    life.write()
    assert next_life(life, path).events() == [done(2)]


def test_an_attempt_of_an_earlier_life_never_runs_again(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.write()
    after = next_life(life, path)
    after.begin(1)
    assert after.reason(1) == "ALREADY_RUN"
    assert after.events() == [event(1)]


STEPS = ["begin", "begin", "withdraw", "checkpoint", "finish", "finish", "acknowledge", "write", "write"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=30),
    st.integers(0, 2_000),
    st.sampled_from([300, 4096]),
)
def test_after_any_crash_every_started_attempt_is_accounted_for_once(
    history: list[tuple[str, int]], crash: int, segment_bytes: int
) -> None:
    """Random lives that end in the middle of a write, at any byte; then what the disk holds is compared with a model."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), segment_bytes=segment_bytes)
        running: dict[AttemptId, UsageEvent] = {}
        synced: dict[AttemptId, UsageEvent] = {}  # what the disk is known to hold
        now: dict[AttemptId, UsageEvent] = {}  # what it would hold after another write
        for step, n in history:
            live = sorted(running, key=str)
            if step == "begin":
                number = len(now) * 10 + len(life.answers) * 1000 + n + 1
                if attempt_id(number) not in now and attempt_id(number) not in life.answers:
                    life.begin(number)
                    running[attempt_id(number)] = now[attempt_id(number)] = event(number)
            elif step == "acknowledge":
                for sent in life.events()[:n]:
                    del now[sent.id]
                life.log.acknowledge(n)
            elif step == "write":
                life.write()
                synced = dict(now)
            elif live:
                id = live[n % len(live)]
                number = int(id.request_id, 16)
                if step == "withdraw":
                    del running[id], now[id]
                    life.log.withdraw(id)
                elif step == "checkpoint":
                    now[id] = event(number, completion_to=running[id].completion_to + 1)
                    running[id] = now[id]
                    life.log.checkpoint([now[id]])
                elif step == "finish" and id in life.answers:
                    del running[id]
                    now[id] = done(number, n)
                    life.log.finish(now[id])
        life.directory.crash = crash
        if now != synced:
            with pytest.raises(Crash):
                run(life.log._write())
        after = next_life(life, Path(folder))
        found = {e.id: e for e in after.events()}
        assert len(found) == len(after.events()), "once"
        for id in synced.keys() | now.keys() | found.keys():
            allowed = (synced.get(id), now.get(id))  # the write that died got as far as this record, or not
            assert found.get(id) in allowed
        after.log.acknowledge(len(found))
        after.write()
        last = next_life(after, Path(folder))
        assert not last.events()
        last.directory.close()


# --- bounds


def test_it_does_not_grow(path: Path) -> None:
    life = Life(path, segment_bytes=3_000)
    sizes = []
    for number in range(1, 60):
        life.begin(number)
        life.write()
        life.log.checkpoint([event(number, completion_to=1)])
        life.write()
        life.log.finish(done(number))
        life.write()
        life.log.acknowledge(1)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
    assert max(sizes) < 4_000
    assert 5 < life.directory.segments < 50
    life.write()
    assert next_life(life, path).events() == []


def test_it_is_bounded_in_bytes(path: Path) -> None:
    life = Life(path, max_bytes=4_000)
    number = 0
    while life.log.trouble is None:
        number += 1
        life.begin(number)
        life.write()
    assert life.log.trouble.reason == "SPOOL_FULL"
    assert 2 <= number <= 8
    life.begin(100)
    assert life.reason(100) == "SPOOL_FULL"
    life.log.finish(done(1))
    life.write()
    life.log.acknowledge(1)
    assert life.log.trouble is None


# --- a disk that fails


def test_a_full_disk_refuses_what_comes_and_loses_nothing_of_what_was_kept(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.begin(2)
    life.write()
    life.directory.full = True
    life.begin(3)
    life.log.finish(done(1))
    life.write()
    assert life.reason(3) == "SPOOL_UNAVAILABLE"
    life.log.withdraw(attempt_id(3))  # as whoever hears that does
    assert life.log.trouble is not None
    assert os.strerror(errno.ENOSPC) in life.log.trouble.message
    assert life.events() == [done(1)], "metering can have it all the same"
    life.begin(4)
    assert life.reason(4) == "SPOOL_UNAVAILABLE"
    life.log.finish(done(2))
    life.write()
    assert life.events() == [done(1), done(2)]
    life.directory.full = False
    life.write()
    assert life.log.trouble is None
    life.begin(5)
    life.write()
    assert life.reason(5) is None
    assert next_life(life, path).events() == [done(1), done(2), event(5)]


def test_a_crash_while_the_disk_is_full_leaves_what_was_kept(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.write()
    life.directory.full = True
    life.log.finish(done(1))
    life.begin(2)
    life.write()
    assert next_life(life, path).events() == [event(1)]


async def test_the_writer_tries_again_by_itself(path: Path) -> None:
    life = Life(path)
    life.directory.full = True
    async with background(life.log.run(), "spool", ends=True):
        life.begin(1)
        while life.log.trouble is None:
            await asyncio.sleep(0)
        life.log.withdraw(attempt_id(1))
        life.directory.full = False
        while life.log.trouble is not None:
            life.clock.advance(RETRY_S)
            await asyncio.sleep(0)
        life.begin(2)
        while attempt_id(2) not in life.answers:
            await asyncio.sleep(0)
        assert life.reason(2) is None
        life.log.close()
    life.directory.close()


async def test_a_disk_that_does_not_answer_makes_it_refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, answered = Life(path), asyncio.Event()

    async def hang(work: Callable[..., None], *args: Any, **rest: Any) -> None:
        await answered.wait()
        work(*args, **rest)

    monkeypatch.setattr(asyncio, "to_thread", hang)
    async with background(life.log.run(), "spool", ends=True) as writer:
        life.begin(1)
        await asyncio.sleep(0)
        assert life.log.trouble is None
        life.clock.advance(STALL_S + 0.1)
        assert life.log.trouble is not None
        assert life.log.trouble.reason == "SPOOL_UNAVAILABLE"
        answered.set()
        life.log.close()
        await within(writer)
    assert life.reason(1) is None
    assert life.log.trouble is None
    life.directory.close()


async def test_what_is_left_is_written_at_the_end(path: Path, clock: FakeClock) -> None:
    async with open_spool(path, 10, 1 << 20, clock) as spool:
        spool.begin(event(1), lambda error: None)
        await asyncio.sleep(0)
        spool.finish(done(1))
    life = Life(path)
    assert life.events() == [done(1)]
    life.directory.close()


async def test_a_directory_without_room_is_a_configuration_error(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: SpoolDirectory, records: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SpoolDirectory, "begin_segment", full)
    with pytest.raises(ConfigError, match=f"cannot be used: {os.strerror(errno.ENOSPC)}; give the worker"):
        async with open_spool(path, 10, 1 << 20, clock):
            pass
    monkeypatch.undo()
    SpoolDirectory(path).close()  # the lock is free again


# --- for an operator


def test_a_rejected_event_is_kept_before_it_is_forgotten(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.write()
    life.log.finish(done(1))
    life.write()
    life.log.reject(0)
    life.log.acknowledge(1)
    life.write()
    (line,) = (path / "rejected").read_bytes().splitlines()
    assert attempt_id(1).request_id.encode() in line
    assert next_life(life, path).events() == []


def test_what_could_not_be_kept_for_an_operator_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: SpoolDirectory, lines: bytes) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    life = Life(path)
    life.begin(1)
    life.write()
    life.log.finish(done(1))
    life.write()
    life.log.reject(0)
    life.log.acknowledge(1)
    with monkeypatch.context() as disk:
        disk.setattr(SpoolDirectory, "reject", full)
        life.write()
    assert life.log.trouble is not None
    life.write()
    assert len((path / "rejected").read_bytes().splitlines()) == 1
    assert next_life(life, path).events() == []


def test_what_cannot_be_read_is_kept(path: Path) -> None:
    life = Life(path)
    life.begin(1)
    life.write()
    life.directory.append(b"not a record\ntor")
    after = next_life(life, path)
    assert after.events() == [event(1)]
    assert (path / "rejected").read_bytes() == b"not a record\n"
    assert next_life(after, path).events() == [event(1)]
