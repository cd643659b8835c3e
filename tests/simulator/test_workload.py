"""Traces and generators."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.errors import FieldViolation, MeshError
from forebay.simulator import workload
from forebay.simulator.workload import Arrival, Stream, chat, flood, read_csv, steady


def test_a_trace_is_read_in_order_of_time_whatever_else_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("client,t,prompt_len,output_len,note\nb,2.5,7,9,x\na,1,3,4,\n")
    assert read_csv(file) == [Arrival(1.0, "a", 3, 4), Arrival(2.5, "b", 7, 9)]


def test_a_trace_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b'\xef\xbb\xbft,client,prompt_len,output_len\r\n0,"a, b",3,4\r\n')
    assert read_csv(file) == [Arrival(0.0, "a, b", 3, 4)]


def test_a_trace_that_is_too_large_says_from_which_line_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "MAX_REQUESTS", 2)
    file = tmp_path / "t.csv"
    file.write_text("t,client,prompt_len,output_len\n" + "0,a,1,1\n" * 3)
    with pytest.raises(MeshError) as caught:
        read_csv(file)
    assert caught.value.field_violations == (
        FieldViolation("line 4", "is one more than 2 requests; end the file before it"),
    )


def test_every_faulty_line_is_named_with_what_would_be_right(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "t,client,prompt_len,output_len\n0,a,1,1\nsoon,a,1,1\n1,,1,1\n2,a,0,1\n3,a,1\nnan,a,1,1\n4,a,1.5,1\n-1,a,1,1\n1700000000,a,1,1\n"
    )
    with pytest.raises(MeshError) as caught:
        read_csv(file)
    assert {fault.field: fault.description for fault in caught.value.field_violations} == {
        "line 3": "t is 'soon', and should be a number of seconds",
        "line 4": "client is empty",
        "line 5": "prompt_len is 0, and should be from 1 to 1,000,000,000",
        "line 6": "has fewer columns than the head",
        "line 7": "t is nan, and should be from 0 to 604,800",
        "line 8": "prompt_len is '1.5', and should be a whole number",
        "line 9": "t is -1, and should be from 0 to 604,800",
        "line 10": "t is 1700000000, and should be from 0 to 604,800",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "lacks t, client, prompt_len, output_len of"),
        ("t,client\n", "lacks prompt_len, output_len of the columns t,client,prompt_len,output_len"),
        ("t,client,prompt_len,output_len\n", "no requests"),
    ],
)
def test_a_file_that_is_no_trace_says_why(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(MeshError) as caught:
        read_csv(file)
    assert fault in caught.value.field_violations[0].description


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="there is no file"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeshError, match="cannot be read as CSV"):
        read_csv(tmp_path / "binary")


def test_a_seed_repeats_and_another_does_not() -> None:
    assert chat(3) == chat(3) != chat(4)


def test_chat_has_the_size_and_the_skew_that_it_says() -> None:
    arrivals = chat(1)
    assert 1_350 < len(arrivals) < 1_650
    assert len({arrival.client for arrival in arrivals}) >= 20
    assert 0.15 < sum(arrival.client == "0" for arrival in arrivals) / len(arrivals) < 0.25
    assert all(1 <= arrival.prompt <= 1_024 and 1 <= arrival.output <= 512 for arrival in arrivals)
    assert 850 < sum(arrival.prompt + arrival.output for arrival in arrivals) / 600 < 1_150
    assert arrivals == sorted(arrivals, key=lambda arrival: arrival.at)


def test_a_stream_does_not_change_with_its_company() -> None:
    a, b = Stream("a", 1.0, (5, 9), (1, 3)), Stream("b", 2.0, (5, 9), (1, 3))
    alone, together = steady([a], 100, 1), steady([a, b], 100, 1)
    assert alone == [arrival for arrival in together if arrival.client == "a"]
    assert 70 < len(alone) < 130
    assert {arrival.prompt for arrival in alone} == set(range(5, 10))


def test_a_flood_asks_for_as_many_tokens_whatever_their_kind() -> None:
    arrivals = flood([("long", 10, 90), ("short", 15, 5)], 10.0, 200.0)
    assert sum(arrival.client == "long" for arrival in arrivals) == 20
    assert sum(arrival.client == "short" for arrival in arrivals) == 100
