"""Every table fits a terminal of 80 columns, with names and figures as long as they come."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.cli.administration import print_limits
from forebay.cli.ledger import print_totals
from forebay.cli.main import main
from forebay.cli.pools import render
from forebay.cli.rows import Rows
from forebay.client import UsageTotal

WIDTH = 80
MODEL = "meta-llama/Llama-3.1-70B-Instruct-AWQ-INT4"
TENANT = "research-platform-europe-west-1-production-and-staging-cluster"
cells = st.text(st.sampled_from("ab ,-/日é"), max_size=60)


def printed(*parts: object, width: int = WIDTH) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(*parts)
    return out.getvalue().splitlines()


@pytest.mark.slow
@given(st.lists(st.lists(cells, min_size=5, max_size=5), min_size=1, max_size=4), st.integers(40, 200))
def test_no_line_is_too_long_and_nothing_is_left_out(rows: list[list[str]], width: int) -> None:
    table = Rows("first", "second", figures=("a figure", "another"), more=("last",), texts=("second", "last"))
    for row in rows:
        table.add(*row)
    lines = printed(table, width=width)
    assert all(cell_len(line) <= width for line in lines)
    for letter in "ab,-/日é":
        expected = sum(cell.count(letter) for row in rows for cell in row)
        names = sum(name.count(letter) for name in ("first", "second", "a figure", "another", "last"))
        assert sum(line.count(letter) for line in lines) >= expected
        assert sum(line.count(letter) for line in lines) <= expected + names * len(rows)


def test_what_fits_is_a_table_with_figures_to_the_right() -> None:
    table = Rows("name", figures=("count",))
    table.add("a", "1")
    table.add("longer", "1,000")
    assert [line.rstrip() for line in printed(table)] == ["name    count", "a           1", "longer  1,000"]


def test_texts_break_at_words_before_a_row_becomes_a_record() -> None:
    table = Rows("name", "text", texts=("text",))
    table.add("x" * 30, "some words that are longer than what is left of a line of eighty")
    lines = printed(table)
    assert lines[0].split() == ["name", "text"]
    assert len(lines) == 3
    wide = Rows("name", "other")
    wide.add("x" * 50, "y" * 50)
    wide.add("z", "")
    assert [line.split() for line in printed(wide)] == [["name", "x" * 50], ["other", "y" * 50], [], ["name", "z"]]


def test_a_cell_steers_no_terminal_and_is_no_markup() -> None:
    table = Rows("name")
    table.add("\x1b[2Jx\x07[red]y[/]")
    table.add(Text("styled", style="red"))
    assert printed(table)[1:] == ["�[2Jx[red]y[/]", "styled        "]


def test_limits_of_a_long_name_fit() -> None:
    compared = {"as_of": {"seconds": 1_700_000_000}, "difference": -123_456_789_012}
    states = [
        quota_pb2.LimitState(subject=f"tenant:{TENANT}", limit="input_tokens_per_minute", value=10**12, used=10**12),
        quota_pb2.LimitState(
            subject=f"tenant:{TENANT}", limit="monthly_budget_nano_usd", value=10**15, used=123_456_789_012_345,
            comparison=compared, resets_in={"seconds": 2_678_000},
        ),
        quota_pb2.LimitState(subject=f"tenant:{TENANT}/model:{MODEL}", limit="concurrent_requests", value=7, used=3),
        quota_pb2.LimitState(subject="key:abcdefgh2345", limit="requests_per_second", value=7, used=3),
    ]  # fmt: skip
    check_narrow(
        lambda: print_limits(quota_pb2.PeekResponse(limits=states), as_json=False), MODEL, "$123,456.789012345"
    )


def test_sums_of_usage_fit() -> None:
    total = UsageTotal((TENANT, MODEL, "budget_stopped"), 10**9, 10**9, 10**13, 10**13, 10**13, 1e8, 10**18)
    check_narrow(lambda: print_totals(["tenant", "model", "outcome"], [total], as_json=False), TENANT, MODEL)


def test_pools_fit() -> None:
    pool = scheduler_pb2.DescribePoolsResponse.Pool(
        name="gold-" * 12, model=MODEL, lenders=["silver-" * 9, "platinum"], lends=True,
        workers=[{"worker": {"id": "worker-of-the-second-rack-17"}, "engine": {"healthy": True, "adapters": ["a" * 40, "b" * 40]}}],  # noqa: E501
        flows=[
            {"tenant_id": TENANT, "key_id": "abcdefgh2345", "service_class": 1, "weight_milli": 2_500, "queued": 1_000,
             "in_flight": 4_096, "service_tenths": 10**13, "owed_tenths": 10**13, "virtual_counter": 10**13}
        ],
    )  # fmt: skip
    lines = printed(render([pool]))
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert TENANT in "\n".join(lines)


def check_narrow(show: Callable[[], object], *whole: str) -> list[str]:
    """Runs something that prints, on a terminal of 80 columns; returns the lines, in which `whole` stands unbroken."""
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as capture:
        out = io.StringIO()
        patch.setattr("forebay.cli.terminal._FILE_WIDTH", WIDTH)
        capture.setattr("sys.stdout", out)
        with suppress(SystemExit):
            show()
    # Quota logs to the same place, from a thread of its own.
    lines = [line for line in out.getvalue().splitlines() if not re.match(r"20.*\[(info|warning|error) *\]", line)]
    assert lines
    assert all(cell_len(line) <= WIDTH for line in lines), lines
    for part in whole:
        assert part in out.getvalue()
    return lines


@pytest.mark.slow
def test_tables_of_administrators_fit(data: Path, tmp_path: Path) -> None:
    def forebay(*arguments: str, whole: tuple[str, ...] = ()) -> list[str]:
        return check_narrow(lambda: main([*arguments, "--data", str(data)]), *whole)

    settings = (
        "display_name=Research Platform, Europe West, Production and Staging", f"models=[{MODEL}, another-model]",
        f"model_limits={{{MODEL}: {{tokens_per_minute: 900, daily_budget_usd: 0.25}}}}", "limits.monthly_budget_usd=123456.789",
        "limits.daily_budget_usd=1234.5", "limits.tokens_per_day=1_000_000_000", f"system_prompt={'You are very kind. ' * 30}",
    )  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    forebay("tenants", "create", TENANT, "--plan", "enterprise", *sets, whole=(TENANT, f"model_limits.{MODEL}"))
    forebay(
        "keys",
        "issue",
        TENANT,
        "--name",
        "The laptop of the night shift in Frankfurt",
        "--model",
        MODEL,
        "--days",
        "30",
    )
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants:\n" + "".join(f"  customer-number-{n}: {{plan: basic}}\n" for n in range(40)))
    forebay("tenants", "import", str(file), "--dry-run", whole=("customer-number-39",))
    forebay("tenants", "list", whole=(TENANT, MODEL))
    forebay("tenants", "show", TENANT, whole=(TENANT,))
    forebay("plans", "list", whole=("enterprise",))
    forebay("keys", "list", TENANT, whole=(MODEL,))
    forebay("audit", "list", whole=(TENANT, "limits.monthly_budget_usd: unset -> 123456.789"))
    forebay("audit", "list", "--refused")
    state = json.loads((data / "mesh.json").read_text())
    state["processes"] |= {
        f"worker-{n}": {"pid": 4_194_304, "address": "127.0.0.1:1", "restarts": 1_000} for n in range(2)
    }
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    (elsewhere / "mesh.json").write_text(json.dumps(state))
    check_narrow(lambda: main(["status", "--data", str(elsewhere)]), "worker-1", "no scheduler leads now")
