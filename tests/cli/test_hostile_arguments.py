"""No argument of any command ends in a traceback, and none is ignored: every parameter of every command, with hostile values."""

from __future__ import annotations

import ast
import inspect
import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from forebay.cli import launcher, simulate
from forebay.cli.main import app, main

from .conftest import KEY

# What makes a command valid but for the value under test.
REQUIRED = {"prompt": "hello", "tenant": "acme", "plan": "free", "key_id": "abcdefgh2345", "file": "/dev/null"}
HOSTILE = {
    "empty": "",
    "space": " ",
    "zero byte": "a\0b",
    "half a character": "a\ud800",
    "emoji": "💥",
    "minus one": "-1",
    "zero": "0",
    "huge": "1e999",
    "nan": "nan",
    "infinite": "-inf",
    "23 digits": "9" * 23,
    "5000 digits": "9" * 5_000,
    "long": "a" * 100_000,
    "path": "../../../etc/passwd",
    "folder": "/",
    "no folder": "/dev/null/x",
    "equals": "=",
    "setting": "weight=9=9",
    "bad setting": "canary={steps: [{percent: 1e999, holds_for: 99999999999h}]}",
    "brackets": "[" * 2_000,
    "markup": "[red]x[/][/]",
    "format": "%s{}{0}{x.y}",
    "escape": "\x1b[2J\x07",
    "dash": "-",
    "two dashes": "--",
    "address": "http://[::1",
    "key": "fb_abcdefgh2345_short",
}
# What a mesh is to see of it: not what is refused before it is asked.
SENT = ("empty", "emoji", "minus one", "23 digits", "long", "setting", "bad setting", "markup", "escape", "key")
# These go on until they are stopped.
ENDLESS = {("usage", "tail"): ["--no-follow"], ("pools",): []}


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every command of the application, with its path."""

    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from walk((*path, name), inner)
        else:
            yield path, command

    yield from walk((), APPLICATION)


# Made once: to make it takes longer than to run it.
APPLICATION = typer.main.get_command(app)
COMMANDS = dict(commands())


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None: ...

    for name in ("KEY", "DATA", "ROUTER", "TLS", "CA", "CERT", "CERT_KEY"):
        monkeypatch.delenv(f"FOREBAY_{name}", raising=False)
    monkeypatch.delenv("ENGINE", raising=False)
    monkeypatch.setattr("forebay.cli.main.app", APPLICATION)
    monkeypatch.setattr(launcher, "launch", nothing)
    monkeypatch.setattr(simulate, "simulate", lambda options: None)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Runs a command in this process; returns its exit status and all that it printed."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff{"), "utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            main(arguments)
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
    for stream in (out, err):
        stream.flush()
    return status, "".join(stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]


def calls(
    path: tuple[str, ...], command: Any, data: Path, values: Iterable[str] = tuple(HOSTILE)
) -> Iterator[tuple[str, list[str]]]:
    """Yields command lines with one hostile value each, and what to call them."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.is_flag]
    needed = [part for each in options if each.required for part in (each.opts[0], REQUIRED[each.name])]
    for parameter in (*arguments, *options):
        for name, value in ((name, HOSTILE[name]) for name in values):
            given = [
                value if each is parameter else REQUIRED[each.name]
                for each in arguments
                if each.required or each is parameter
            ]
            rest = [*needed, *ENDLESS.get(path, [])]
            if parameter in options:
                rest += [f"{parameter.opts[0]}={value}"]
            if parameter.name != "data":
                rest += ["--data", str(data)] if any(each.name == "data" for each in options) else []
            yield f"{' '.join(path)} {parameter.name}: {name}", [*path, *rest, "--", *given]


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_argument_ends_in_a_traceback_where_no_mesh_runs(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call, arguments in calls(path, COMMANDS[path], tmp_path / "data"):
        status, printed = run(arguments, monkeypatch)
        assert status in (0, 1, 2), call
        assert "Traceback" not in printed, call
        assert status == 0 or printed.strip(), call


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if path[0] not in ("up", "simulate", "status")], ids=" ".join
)
def test_no_argument_ends_in_a_traceback_where_a_mesh_answers(
    path: tuple[str, ...], data: Path, serving: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREBAY_KEY", KEY)
    monkeypatch.setenv("FOREBAY_ROUTER", serving)
    # Nobody answers at an address that is made up, and nothing is won by waiting for it.
    monkeypatch.setattr("forebay.client.client._LAST_WORD_S", 0.01)
    monkeypatch.setattr("forebay.cli.answer.LEDGER_WITHIN_S", 0.01)
    for call, arguments in calls(path, COMMANDS[path], data, SENT):
        status, printed = run(arguments, monkeypatch)
        assert status in (0, 1, 2), call
        assert "Traceback" not in printed, call
        assert "This is a bug" not in printed, call


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_parameter_is_left_unread(path: tuple[str, ...]) -> None:
    function = inspect.unwrap(COMMANDS[path].callback)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    read = {node.id for statement in tree.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    through_context = (
        {"key", "tenant", "router", "tls", "ca", "cert", "cert_key", "data"} if "caller" in read else set()
    )
    assert {parameter.name for parameter in COMMANDS[path].params} - read - through_context <= {"help"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["generate", "x", "--key", "fb_x", "--tenant", "acme", "--router", "127.0.0.1:1"],
            "--key and --tenant both say who",
        ),
        (["generate", "x", "--key", "", "--router", "127.0.0.1:1"], "--key is empty"),
        (["generate", "x", "--key", "fb_x", "--router", ""], "address must be HOST:PORT"),
        (["usage", "tail", "--all", "--tenant", "acme"], "--tenant has no meaning beside --all"),
        (["usage", "sum", "--all", "--router", "127.0.0.1:1"], "--router has no meaning beside --all"),
        (["usage", "sum", "--all", "--insecure"], "--tls has no meaning beside --all"),
        (["usage", "tail", "--tenant", "acme", "--from", ""], "--from is empty"),
        (["usage", "tail", "--tenant", "acme", "--request", ""], "is empty"),
        (["usage", "sum", "--tenant", "acme", "--by", "day,day"], "each dimension can be named once"),
        (["audit", "list", "--tenant", ""], "is empty"),
        (["pools", ""], "is empty"),
        (["simulate", "chat", "--trace", "/dev/null"], "SCENARIO has no meaning beside --trace"),
        (["simulate", "--trace", "/dev/null", "--seed", "2"], "--seed has no meaning beside --trace"),
        (["simulate", "--compare", "--scheduler", "fcfs"], "--scheduler has no meaning beside --compare"),
        (["up", "--pool", "shared:1"], "shared is the pool that every model has"),
        (["up", "--pool", "gold:1", "--pool", "gold:2"], "each name can be given once"),
        (["keys", "revoke", "fb_abcdefgh2345_typo"], "looks like a key and is not a whole one"),
        (["tenants", "update", "acme", "--plan", "free", "--set", "plan=basic"], "plan is given twice"),
        (["tenants", "update", "acme", "--set", "weight=1", "--unset", "weight"], "is both set and unset"),
    ],
)
def test_what_would_be_ignored_is_refused(
    arguments: list[str], problem: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "dev-keys.json").write_text(json.dumps({"acme": KEY}))
    within = [] if arguments[0] == "simulate" else ["--data", str(data)]
    status, printed = run([*arguments, *within], monkeypatch)
    assert status == 2
    assert problem in " ".join(printed.replace("│", " ").split())
    assert "typo" not in printed


def test_a_tenant_on_the_command_line_outweighs_a_key_of_the_environment(
    data: Path, serving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "dev-keys.json").write_text(json.dumps({"acme": KEY}))
    monkeypatch.setenv("FOREBAY_KEY", "fb_of_somebody_else")
    call = ["usage", "tail", "--no-follow", "--router", serving, "--data", str(data), "--json"]
    assert run(call, monkeypatch)[0] == 1
    assert run([*call, "--tenant", "acme"], monkeypatch)[0] == 0


def test_a_terminal_without_utf_8_shows_what_it_can(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    with pytest.raises(SystemExit) as caught:
        main(["tenants", "limits", "nobody", "--data", str(data)])
    assert caught.value.code == 1
    with pytest.raises(SystemExit) as caught:
        main(["plans", "update", "free", "--set", "limits.requests_per_minute=20", "--data", str(data)])
    assert not caught.value.code
