"""The command line: what is asked wrongly ends with 2, what cannot be done with 1, each with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forebay import __version__
from forebay.cli.main import main


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_KEY", "FOREBAY_DATA", "ENGINE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--routers", "0"),
        ("up", "--workers", "x"),
        ("up", "--pool", "gold"),
        ("up", "--engine", "abacus"),
        ("up", "--tenants", "/nowhere/tenants.yaml"),
        ("up", "--exit-after-demo"),
        ("generate",),
        ("generate", "hello", "--max-tokens", "0"),
        ("generate", "hello", "--temperature", "3"),
        ("usage", "sum", "--by", "colour"),
        ("fly",),
    ],
)
def test_what_is_asked_wrongly(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "hello"),
        ("usage", "tail", "--all"),
        ("usage", "sum"),
        ("tenants", "list"),
        ("plans", "list"),
        ("status",),
    ],
)
def test_without_a_mesh(arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments, "--data", str(tmp_path)) == 1
    assert f"no mesh is running in {tmp_path}" in capsys.readouterr().err


def test_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dev-keys.json").write_text(json.dumps({"acme": "fb_x"}))
    address = ("--router", "127.0.0.1:1", "--data", str(tmp_path))
    assert run("generate", "hello", *address) == 1
    assert "--tenant with one of: acme" in capsys.readouterr().err
    assert run("generate", "hello", "--tenant", "nobody", *address) == 1
    assert "nobody has no development key" in capsys.readouterr().err


def test_help_shows_what_a_list_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tenants", "update", "--help") == 0
    assert "models=[a,b]" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    output = capsys.readouterr().out
    for command in ("up", "generate", "usage", "tenants", "plans", "status"):
        assert command in output


@pytest.mark.parametrize(
    "arguments", [("-h",), ("up", "-h"), ("usage", "-h"), ("usage", "sum", "-h"), ("keys", "issue", "-h")]
)
def test_every_command_knows_the_short_form_of_help(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 0
    short = capsys.readouterr().out
    assert run(*arguments[:-1], "--help") == 0
    assert short == capsys.readouterr().out


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"forebay {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_are_completed(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asks as the scripts do that `forebay --show-completion` prints."""
    monkeypatch.setattr("sys.argv", ["forebay"])
    monkeypatch.setenv("_FOREBAY_COMPLETE", f"complete_{shell}")
    for words, found in (("forebay us", "usage"), ("forebay usage s", "sum"), ("forebay up --sched", "--schedulers")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        assert run() == 0
        assert found in capsys.readouterr().out
