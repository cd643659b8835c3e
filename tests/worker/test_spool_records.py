"""Whatever a crash leaves of the records, each attempt is accounted for by the last of its records that is whole."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.spool_records import done_record, replay, to_record
from forebay.worker.domain.usage import Outcome, Trace, UsageEvent

from .doubles import attempt_id, event

written = st.builds(
    lambda number, outcome, tokens: event(number, outcome, completion_to=tokens),
    st.integers(1, 3),
    st.sampled_from(Outcome),
    st.integers(0, 9),
)
Record = UsageEvent | AttemptId
records = st.lists(written | st.integers(1, 3).map(attempt_id), max_size=8)


def encode(record: Record) -> bytes:
    return done_record(record) if isinstance(record, AttemptId) else to_record(record)


def standing(history: list[Record]) -> list[UsageEvent]:
    """What is live after a history, by the rule alone: an attempt's last record counts."""
    last = {record if isinstance(record, AttemptId) else record.id: n for n, record in enumerate(history)}
    return [record for n, record in enumerate(history) if isinstance(record, UsageEvent) and last[record.id] == n]


def test_an_event_comes_back_as_it_was() -> None:
    before = replace(
        event(1, Outcome.BUDGET_STOPPED, completion_to=7),
        time_to_first_token=0.1 + 0.2,
        finished_at=1_700_000_000.123456,
        trace=Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"),
        adapter="ünïcode\n\x00\u2028",
    )
    assert replay(to_record(before)).events == [before]


@settings(max_examples=25, deadline=None)
@given(records)
def test_cut_off_at_any_byte_whole_records_count_and_nothing_else(history: list[Record]) -> None:
    lines = [encode(record) for record in history]
    content = b"".join(lines)
    ends = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    assert replay(content).events == standing(history)
    for n, (begin, end) in enumerate(itertools.pairwise(ends)):
        whole = standing(history[:n])
        for cut in {begin, begin + 1, (begin + end) // 2, end - 1}:
            found = replay(content[:cut])
            assert (found.events, found.unreadable, found.torn_bytes) == (whole, [], cut - begin)


@settings(max_examples=25, deadline=None)
@given(records.filter(bool), st.data())
def test_damage_stays_in_its_line(history: list[Record], data: st.DataObject) -> None:
    lines = [encode(record) for record in history]
    hit = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[hit]) - 2))
    damaged = bytearray(lines[hit])
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    found = replay(b"".join([*lines[:hit], bytes(damaged), *lines[hit + 1 :]]))
    assert found.events == standing(history[:hit] + history[hit + 1 :])
    assert b"\n".join(found.unreadable) == bytes(damaged)[:-1]


def test_what_another_version_wrote_is_kept_aside() -> None:
    for body in (b'[["x",1],["a"],["b"],1,"lost",[]]', b'{"id":"x","new":1,"x":2}', b"7", b"null", b"[]"):
        found = replay(b"%08x %b\n" % (zlib.crc32(body), body))
        assert not found.events
        assert len(found.unreadable) == 1
