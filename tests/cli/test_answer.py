"""What `forebay generate`, `forebay usage` and the demonstration print."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from forebay.cli import answer, ledger
from forebay.cli.demo import show_demo
from forebay.client import Code, ForebayClient, MeshError

from .conftest import KEY, REQUEST_ID, TRACE_ID, ScriptedRouter


async def test_the_answer_goes_to_stdout_and_what_it_took_beside(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    await answer.generate(router.address, KEY, "The capital?", "Be brief.", {"max_tokens": 8})
    output = capsys.readouterr()
    assert output.out == "Paris it is.\n"
    assert router.options is not None
    assert [turn.content for turn in router.options.prompt.chat.messages] == ["Be brief.", "The capital?"]
    for part in ("7 tokens in", "3 out (stop)", "$0.000001234", "first token 120 ms", REQUEST_ID, TRACE_ID):
        assert part in output.err


async def test_rows_of_the_ledger(router: ScriptedRouter, capsys: pytest.CaptureFixture[str]) -> None:
    async with ForebayClient(router.address, KEY) as client:
        await ledger.tail(ledger.tenant_pages(client, follow=False), "", follow=False, as_json=False)
        head, row = capsys.readouterr().out.splitlines()
        await ledger.tail(ledger.tenant_pages(client, follow=False), "", follow=False, as_json=True)
        (line,) = capsys.readouterr().out.splitlines()
    assert head.split() == ["at", "tenant", "model", "in", "out", "GPU", "first", "cost", "outcome", "request"]
    assert row.split()[1:] == [
        "acme", "simulated", "7", "3", "200", "ms", "–", "$0.000001234", "completed", REQUEST_ID,
    ]  # fmt: skip
    assert json.loads(line)["trace_id"] == TRACE_ID


async def test_a_refused_usage_stream_is_not_asked_for_again(router: ScriptedRouter) -> None:
    router.refuse = MeshError(Code.PERMISSION_DENIED, "NOT_YOURS", "not yours")
    async with ForebayClient(router.address, KEY) as client:
        with pytest.raises(MeshError, match="NOT_YOURS"):
            await ledger.tail(ledger.tenant_pages(client, follow=True), "", follow=True, as_json=True)


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
