"""The journal: nobody is told of what is not on the disk, and who comes together waits for one fsync."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from forebay.errors import MeshError
from forebay.journal import Journal


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    sync = os.fsync

    def counted(file: int) -> None:
        made.append(file)
        sync(file)

    monkeypatch.setattr(os, "fsync", counted)
    return made


async def keep(journal: Journal, number: int) -> None:
    journal.append(number=number)
    await journal.synced()


def numbers(path: Path) -> list[int]:
    return [record["number"] for record in Journal(path).left]


async def test_what_comes_together_shares_one_sync_and_is_there_after(tmp_path: Path, syncs: list[int]) -> None:
    journal = Journal(tmp_path / "journal")
    syncs.clear()
    await asyncio.gather(*(keep(journal, number) for number in range(50)))
    assert len(syncs) == 1
    assert numbers(tmp_path / "journal") == list(range(50))


async def test_a_disk_that_fails_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    await keep(journal, 1)
    with monkeypatch.context() as patch:

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(MeshError) as caught:
            await keep(journal, 2)
    assert caught.value.reason == "JOURNAL_UNAVAILABLE"
    await keep(journal, 3)
    assert numbers(tmp_path / "journal") == [1, 2, 3]


async def test_a_line_cut_short_is_passed_over_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"number": 1}\n{"num')
    journal = Journal(path)
    assert [record["number"] for record in journal.left] == [1]
    await keep(journal, 2)
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("in_the_middle", [False, True])
async def test_a_cleared_journal_begins_at_the_front(tmp_path: Path, in_the_middle: bool) -> None:
    journal = Journal(tmp_path / "journal")
    await keep(journal, 1)
    journal.append(number=2)
    if in_the_middle:
        await asyncio.sleep(0)  # the write is under way
    journal.clear()
    await keep(journal, 3)
    await keep(journal, 4)
    assert numbers(tmp_path / "journal") == [3, 4]
    await journal.close()


async def test_what_could_not_be_written_is_written_without_anything_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.journal.RETRY_AFTER_S", 0.001)
    journal = Journal(tmp_path / "journal")
    written, fsync = asyncio.Event(), os.fsync
    loop, failures = asyncio.get_running_loop(), [OSError(28, "No space left on device")]

    def full_once(file: int) -> None:
        if failures:
            raise failures.pop()
        fsync(file)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(os, "fsync", full_once)
    journal.append(number=1)  # a charge: nobody waits for it
    async with asyncio.timeout(60):
        await written.wait()
    assert numbers(tmp_path / "journal") == [1]
    await journal.close()
