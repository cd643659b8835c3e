"""What `forebay generate`, `forebay usage` and the demonstration print."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from forebay.api.metering.v1 import metering_pb2
from forebay.cli import answer, ledger
from forebay.cli.access import Access
from forebay.cli.demo import show_demo
from forebay.client import Code, ForebayClient, MeshError, TokenUsage, UsagePage
from forebay.client.messages import from_pb_entry

from .conftest import KEY, REQUEST_ID, TRACE_ID, ScriptedRouter, entry


async def test_the_answer_goes_to_stdout_and_what_it_took_beside(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    request = answer.request("The capital?", "Be brief.", {"max_tokens": 8, "seed": None})
    await answer.generate(Access(router.address, KEY), request)
    output = capsys.readouterr()
    assert output.out == "Paris it is.\n"
    assert router.options is not None
    assert [turn.content for turn in router.options.prompt.chat.messages] == ["Be brief.", "The capital?"]
    for part in ("7 tokens in", "3 out (stop)", "$0.000001234", "first token 120 ms", REQUEST_ID, TRACE_ID):
        assert part in output.err


async def test_a_request_of_two_attempts_costs_what_both_cost(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.endless = True
    router.pages = [
        [entry(1, prompt=7, completion=1, nano_usd=1_000, outcome=metering_pb2.OUTCOME_LOST)],
        [entry(2, prompt=0, completion=2, nano_usd=500)],
        [entry(3, prompt=0, completion=90, nano_usd=90_000)],  # never waited for
    ]
    await answer.generate(Access(router.address, KEY), answer.request("The capital?", None, {}))
    assert " · $0.0000015 · " in capsys.readouterr().err
    (asked,) = router.asked
    assert (list(asked.filter.request_ids), asked.follow) == ([REQUEST_ID], True)


async def test_rows_that_correct_others_are_added(router: ScriptedRouter) -> None:
    router.endless = True
    router.pages = [
        [entry(1, prompt=7, completion=2, nano_usd=1_000)],
        [
            entry(2, prompt=-7, completion=-2, nano_usd=-1_000, corrects=1),
            entry(3, prompt=7, completion=3, nano_usd=1_100),
        ],
    ]
    async with ForebayClient(router.address, KEY) as client:
        bill = await answer.ledger_rows(client, REQUEST_ID, TokenUsage(7, 0, 3))
    assert (bill.complete, bill.cost_nano_usd, len(bill.entries)) == (True, 1_100, 3)


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        (
            [[entry(2, prompt=0, completion=2, nano_usd=500)]],
            f"$0.0000005 so far for 2 of 10 tokens, the rest follows: `forebay usage tail --request {REQUEST_ID}`",
        ),
        ([], f"not in the ledger yet, see `forebay usage tail --request {REQUEST_ID}`"),
        ([MeshError(Code.UNAVAILABLE, "USAGE_UNAVAILABLE", "away")], "not in the ledger yet"),
    ],
)
async def test_rows_that_do_not_come_are_not_waited_for_without_end(
    router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch, pages: list[Any], said: str
) -> None:
    router.endless = True
    router.pages = pages
    async with ForebayClient(router.address, KEY) as client:
        waited = answer.ledger_rows
        monkeypatch.setattr(answer, "ledger_rows", lambda *what: waited(*what, within_s=0.05))
        told = await answer.tell(client, "Hello", {}, lambda _: None)
    assert said in " ".join(answer.summary(told))


async def test_rows_of_the_ledger(router: ScriptedRouter, capsys: pytest.CaptureFixture[str]) -> None:
    async with ForebayClient(router.address, KEY) as client:
        await ledger.tail(ledger.own_pages(client), ledger.Query(ledger.Start()), as_json=False)
        head, row = capsys.readouterr().out.splitlines()
        await ledger.tail(ledger.own_pages(client), ledger.Query(ledger.Start()), as_json=True)
        (line,) = capsys.readouterr().out.splitlines()
    assert head.split() == ["at", "(UTC)", "tenant", "model", "in", "out", "GPU", "first", "cost", "outcome", "request"]
    assert row.split() == [
        "2023-11-14", "22:13:20", "acme", "simulated", "7", "3", "200", "ms", "–", "$0.000001234", "completed", REQUEST_ID,
    ]  # fmt: skip
    assert json.loads(line)["trace_id"] == TRACE_ID


async def test_a_tail_from_a_time_on_reads_to_the_end_and_then_all_that_comes(router: ScriptedRouter) -> None:
    shown: list[str] = []
    router.pages.append(MeshError(Code.PERMISSION_DENIED, "ENOUGH", "the test has seen enough"))
    async with ForebayClient(router.address, KEY) as client:
        pages = ledger.own_pages(client)
        with pytest.raises(MeshError, match="ENOUGH"):
            await ledger.tail(pages, ledger.Query(ledger.Start(since=1_600_000_000), follow=True), as_json=True)
        del router.pages[-1]
        router.pages, first = [*router.pages], router.asked[0]
        assert (first.cursor, first.filter.finished_from.seconds, first.follow) == ("", 1_600_000_000, False)

        async def scripted(query: ledger.Query) -> AsyncIterator[UsagePage]:
            shown.append(f"{query.start.cursor}/{query.start.since}/{query.follow}")
            if query.follow:
                raise MeshError(Code.PERMISSION_DENIED, "ENOUGH", "the test has seen enough")
            yield UsagePage((), "17")

        with pytest.raises(MeshError, match="ENOUGH"):
            await ledger.tail(scripted, ledger.Query(ledger.Start(since=5.0), follow=True), as_json=True)
    assert shown == ["/5.0/False", "17/None/True"]


async def test_a_tail_that_breaks_off_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger, "AGAIN_AFTER_S", 0.0)
    cursors: list[str] = []

    async def pages(query: ledger.Query) -> AsyncIterator[UsagePage]:
        cursors.append(query.start.cursor)
        if len(cursors) == 4:
            raise MeshError(Code.PERMISSION_DENIED, "ENOUGH", "the test has seen enough")
        if len(cursors) != 2:
            yield UsagePage((), str(len(cursors)))
        raise MeshError(Code.UNAVAILABLE, "CONNECTION_LOST", "gone")

    with pytest.raises(MeshError, match="ENOUGH"):
        await ledger.tail(pages, ledger.Query(ledger.Start(), follow=True), as_json=True)
    assert cursors == ["", "1", "1", "3"]
    assert capsys.readouterr().err.count("the usage stream broke off; waiting for it") == 2  # once for each time


@pytest.mark.parametrize("tenants", [False, True])
async def test_rows_fit_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tenants: bool
) -> None:
    monkeypatch.setattr("forebay.cli.terminal._FILE_WIDTH", 80)
    wide = entry(
        1, prompt=123_456, completion=123_456, nano_usd=1_234_567_890_123, tenant_id="research-platform-europe-west",
        model="meta-llama/Llama-3.1-70B-Instruct", outcome=metering_pb2.OUTCOME_BUDGET_STOPPED,
    )  # fmt: skip
    correction = entry(2, corrects=123_456_789, tenant_id="日本語" * 8)

    async def pages(query: ledger.Query) -> AsyncIterator[UsagePage]:
        yield UsagePage((from_pb_entry(wide), from_pb_entry(correction)), "1")

    await ledger.tail(pages, ledger.Query(ledger.Start()), as_json=False, tenants=tenants)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(cell_len(line) <= 80 for line in lines)
    assert ("tenant" in lines[0].split()) is tenants
    assert lines[1].startswith("11-14 22:13:20 ")
    assert "$1,234.56789" in lines[1]


async def test_a_refused_usage_stream_is_not_asked_for_again(router: ScriptedRouter) -> None:
    router.refuse = MeshError(Code.PERMISSION_DENIED, "NOT_YOURS", "not yours")
    async with ForebayClient(router.address, KEY) as client:
        with pytest.raises(MeshError, match="NOT_YOURS"):
            await ledger.tail(ledger.own_pages(client), ledger.Query(ledger.Start(), follow=True), as_json=True)


@pytest.mark.parametrize("terminal", [False, True])
async def test_the_demonstration(router: ScriptedRouter, terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=140)
    assert await show_demo(console, router.address, {"acme": KEY, "globex": KEY})
    text = output.getvalue()
    assert "What is the capital of France?" in text
    assert text.count("Paris it is.") >= 2
    assert text.count(TRACE_ID) == 2
    assert "enterprise" in text


async def test_a_demonstration_that_fails_says_why(router: ScriptedRouter) -> None:
    output = io.StringIO()
    console = Console(file=output, width=140)
    assert not await show_demo(console, router.address, {"acme": KEY, "globex": "fb_wrong"})
    assert "globex: the key is not known (KEY_UNKNOWN)" in output.getvalue()
