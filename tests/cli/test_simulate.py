"""`forebay simulate`: what is printed and drawn, and what is said of bad input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from forebay.cli.main import main
from forebay.simulator.schedulers import SCHEDULERS

TRACE = "t,client,prompt_len,output_len\n" + "".join(f"{n / 2},{'ab'[n % 2]},{20 + n},{5 + n}\n" for n in range(20))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    return file


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *arguments])
    return caught.value.code if isinstance(caught.value.code, int) else 0


def test_a_trace_is_told_client_by_client(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", str(trace)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("forebay, 10 s simulated")
    assert lines[2].split()[:3] == ["client", "attempted", "accepted"]
    rows = {line.split()[0]: line.split() for line in lines[3:5]}
    assert rows["a"][1:4] == ["10", "10", "430"]  # 290 of prompts and 140 generated
    assert "0 preempted" in lines[6]


@pytest.mark.slow
def test_what_is_larger_than_an_engine_is_refused_and_says_how_to_have_larger_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t,client,prompt_len,output_len\n0,$\\a$,3000,10\n")
    plots = tmp_path / "plots"
    assert run("--trace", str(trace), "--plots", str(plots)) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["$\\a$", "1", "0", "0", "–", "–", "0.0%", "0.0%"] in lines
    assert ["refused", "too", "large"] in lines
    assert "more than 2,048 tokens, prompt and max_tokens together; see --max-model-len" in output
    assert {file.stem for file in plots.iterdir()} == {"acceptance", "attempted"}
    assert run("--trace", str(trace), "--max-model-len", "4096", "--json") == 0
    assert json.loads(capsys.readouterr().out)["clients"][0]["accepted"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_no_cell_is_cut(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("forebay.cli.terminal._FILE_WIDTH", width)
    assert run("--seconds", "20", "--scheduler", "fcfs", "--scheduler", "push-everything") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("…" in line for line in lines)
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any(line.split()[:1] == ["enterprise"] and line.split()[-1].startswith("$0.") for line in lines)


def test_schedulers_are_laid_side_by_side(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", str(trace), "--scheduler", "fcfs", "--scheduler", "vtc", "--scheduler", "fcfs") == 0
    output = capsys.readouterr().out
    assert output.startswith("fcfs, 10 s simulated")
    *_, head, first, second, quietest = output.splitlines()
    assert [line.split()[0] for line in (head, first, second)] == ["scheduler", "fcfs", "vtc"]
    assert first.split()[1:3] == ["–", "–"]  # too short for a window
    assert quietest.startswith("first tokens are those of ")


def test_a_run_that_is_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("asymmetric", "--seconds", "2", "--scheduler", "fcfs") == 0
    assert re.match(
        r"fcfs, 2 s simulated, then cut with \d+ requests not served to their end\n", capsys.readouterr().out
    )


def test_json_is_one_object_for_each_scheduler(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", str(trace), "--scheduler", "fcfs", "--scheduler", "forebay", "--json") == 0
    captured = capsys.readouterr()
    fcfs, forebay = (json.loads(line) for line in captured.out.splitlines())
    assert (fcfs["scheduler"], forebay["scheduler"]) == ("fcfs", "forebay")
    assert sum(client["received"] for client in forebay["clients"]) == pytest.approx(1.0, abs=0.001)
    assert 0 < forebay["kv"] < forebay["busy"] < 1
    assert captured.err == ""


def test_engines_can_be_of_another_kind(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--workers", "2", "--kv-tokens", "4096", "--speed", "0.25", "--delay-ms", "50", "--max-tokens", "9")
    assert run("--trace", str(trace), "--json", *options) == 0
    slow = json.loads(capsys.readouterr().out)
    assert run("--trace", str(trace), "--json") == 0
    usual = json.loads(capsys.readouterr().out)
    assert slow["clients"][0]["first_token_p50_s"] > 3 * usual["clients"][0]["first_token_p50_s"]
    assert slow["clients"][0]["tokens"] < usual["clients"][0]["tokens"]


@pytest.mark.slow
def test_four_tenants_are_refused_by_their_plans_and_pay_their_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--seconds", "40", "--json", "--scheduler", "fcfs") == 0
    clients = {client["client"]: client for client in json.loads(capsys.readouterr().out)["clients"]}
    assert set(clients) == {"basic", "standard", "premium", "enterprise"}
    assert clients["enterprise"]["refused"]["concurrent_requests"] > 0
    for name, usd_per_1000_tokens in (("basic", 0.002), ("enterprise", 0.0008)):
        assert clients[name]["cost_nano_usd"] == round(clients[name]["tokens"] * usd_per_1000_tokens * 1e6)
    assert run("--seconds", "40", "--scheduler", "fcfs") == 0
    assert "concurrent requests" in capsys.readouterr().out


@pytest.mark.slow
def test_plots_are_written_for_what_there_is_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plots = tmp_path / "new" / "plots"
    schedulers = ("--scheduler", "vtc", "--scheduler", "fcfs")
    assert run("chat", "--seconds", "100", *schedulers, "--plots", str(plots)) == 0
    names = {"acceptance", "attempted", "utilisation", "service", "difference", "ttft"}
    assert {file.stem for file in plots.iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000 for file in plots.iterdir())
    assert capsys.readouterr().err.count("wrote ") == len(names)
    assert run("--seconds", "5", *schedulers, "--plots", str(plots)) == 0
    assert (plots / "cost.png").exists()


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "forebay.simulator.plots", None)
    monkeypatch.delattr("forebay.simulator.plots", raising=False)
    assert run("--plots", str(tmp_path / "plots")) == 1
    assert "pip install 'forebay[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()


def test_a_directory_that_cannot_be_written_is_known_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    for directory in ("/proc", "/dev/null/plots"):
        assert run("--seconds", "86400", "--plots", directory) == 1
        assert f"no plots can be written to {directory}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--trace", "/nowhere/trace.csv"), "there is no file /nowhere/trace.csv"),
        (("--trace", "/dev/null"), "line 1: lacks t, client, prompt_len, output_len of the columns"),
    ],
)
def test_what_cannot_be_simulated(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    assert sentence in capsys.readouterr().err


def test_a_span_in_which_nobody_asks(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_text("t,client,prompt_len,output_len\n5,a,1,1\n")
    assert run("--trace", str(trace), "--seconds", "2") == 1
    assert "no request comes in that time" in capsys.readouterr().err


def test_faulty_lines_are_named(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_text(TRACE + "11,a,many,1\n")
    assert run("--trace", str(trace)) == 1
    assert "line 22: prompt_len is 'many', and should be a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenants-4",),
        ("--scheduler", "magic"),
        ("--workers", "0"),
        ("--seconds", "0"),
        ("--speed", "0"),
        ("--delay-ms", "inf"),
    ],
)
def test_what_is_asked_wrongly(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2


def test_progress_is_told_while_it_runs(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("forebay.cli.simulate._LINE_EVERY_S", 0.0)
    assert run("--trace", str(trace)) == 0
    assert "of 20 requests, 5 s simulated" in capsys.readouterr().err


def test_help_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    output = capsys.readouterr().out
    for name in (
        "four-tenants",
        "chat",
        "victim",
        "weights",
        "asymmetric",
        "adversary",
        "--trace day.csv",
        *SCHEDULERS,
    ):
        assert name in output
