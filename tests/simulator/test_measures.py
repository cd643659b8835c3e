"""Measures on runs that can be computed by hand."""

from __future__ import annotations

import pytest

from forebay.simulator.forebay_dispatcher import Standing
from forebay.simulator.loop import Outcome, Served
from forebay.simulator.measures import (
    Quantiles,
    fairness,
    first_token_seconds,
    jain,
    owed,
    quantiles,
    service_difference,
    service_of,
    tokens_per_second,
)
from forebay.simulator.workload import Arrival


def served(
    client: str, at: float, first: float | None, last: float | None, *, prompt: int = 20, output: int = 20
) -> Served:
    return Served(
        Arrival(at, client, prompt, output), 10_000, first_token_at=first, finished_at=last,
        generated=output if last is not None else 0,
    )  # fmt: skip


def outcome(*requests: Served, ended_at: float = 630.0, service: dict[str, list[float]] | None = None) -> Outcome:
    return Outcome(list(requests), ended_at, 0, 0, 0, [], [], service or {})


END = served("z", 630.0, None, None, prompt=1, output=1)  # spans the grid: windows begin every 30 s


def test_windows_follow_each_other_after_the_warm_up() -> None:
    assert [middle for middle, _ in service_difference(outcome(END))] == [60.0 + 30 * number for number in range(19)]
    assert service_difference(outcome(served("a", 20.0, 20.0, 21.0))) == []
    assert fairness(outcome()).max_diff == 0.0


def test_a_client_lacks_what_it_wanted_up_to_what_the_best_served_got() -> None:
    # In the window from 300 to 360: a gets 6,000 of the 6,000 it asks for, b nothing of 600, c nothing of 60,000.
    run = outcome(
        served("a", 300.0, 300.0, 360.0, prompt=2_000, output=2_000),
        served("b", 310.0, 400.0, 401.0, prompt=200, output=200),
        served("c", 310.0, None, None, prompt=20_000, output=50),
        END,
    )
    at = dict(service_difference(run))
    assert at[330.0] == pytest.approx((600 + 6_000) / 60)
    # From 270 to 330 a has had half of it, against a demand of all of it.
    assert at[300.0] == pytest.approx((0 + 600 + 3_000) / 60)


def test_service_beyond_the_demand_of_a_window_counts_as_well() -> None:
    # Asked for before, served in the window from 300 to 360: a has a backlog worked off while b has nothing to ask.
    run = outcome(served("a", 100.0, 300.0, 330.0), served("b", 100.0, 300.0, 360.0, prompt=2_000, output=2_000), END)
    assert dict(service_difference(run))[330.0] == pytest.approx((60 + 0) / 60)


def test_what_was_refused_is_no_demand() -> None:
    refused = served("b", 310.0, None, None, prompt=2_000, output=2_000)
    refused.refusal = "tokens_per_minute"
    run = outcome(served("a", 300.0, 300.0, 330.0), refused, END)
    assert dict(service_difference(run))[330.0] == 0.0


def test_what_runs_when_a_run_is_cut_was_served_until_then() -> None:
    # b gets 5 tokens a second from 500 on, until the cut at 600; it asked for them before the window from 510 to 570.
    cut = served("b", 500.0, 500.0, None, prompt=0, output=1_000)
    cut.generated = 500
    run = outcome(served("a", 510.0, 510.0, 570.0, prompt=6_000, output=0), cut, END, ended_at=600.0)
    assert dict(service_difference(run))[540.0] == pytest.approx(10.0)


def test_who_is_entitled_to_more_lacks_more() -> None:
    twice = {"b": Standing(weight_milli=2_000)}
    run = outcome(
        served("a", 300.0, 300.0, 360.0, prompt=2_000, output=2_000),
        served("b", 300.0, 300.0, 360.0, prompt=2_000, output=2_000),
        served("b", 300.0, None, None, prompt=2_000, output=2_000),
    )
    run.served.append(served("a", 630.0, None, None, prompt=1, output=1))
    # b lacks as much again as it got; the equals are even, though b asked for more.
    assert dict(service_difference(run, twice))[330.0] == pytest.approx(6_000 / 60)
    assert dict(service_difference(run))[330.0] == 0.0


def test_throughput_counts_what_was_served() -> None:
    run = outcome(served("a", 0.0, 1.0, 2.0), served("a", 0.0, None, None), ended_at=10.0)
    assert tokens_per_second(run) == 4.0


def test_service_of_a_part_of_the_run() -> None:
    run = outcome(service={"a": [1.0, 2.0, 4.0], "b": [8.0]})
    assert service_of(run) == {"a": 7.0, "b": 8.0}
    assert service_of(run, 1.0, 2.0) == {"a": 2.0, "b": 0.0}


def test_owed_is_by_weight_and_never_more_than_asked_for() -> None:
    service = {"a": 50.0, "b": 40.0, "c": 10.0}
    assert owed(service, {}, dict.fromkeys(service, 1e9)) == pytest.approx(dict.fromkeys(service, 100 / 3))
    assert owed(service, {"a": 3.0}, {"a": 1e9, "b": 1e9, "c": 10.0}) == pytest.approx(
        {"a": 67.5, "b": 22.5, "c": 10.0}
    )
    assert owed({"a": 5.0}, {}, {"a": 5.0}) == {"a": 5.0}


def test_jain() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0]) == 1.0


def test_first_tokens_and_quantiles() -> None:
    run = outcome(served("a", 0.0, 1.5, 2.0), served("b", 1.0, 5.0, 6.0), served("a", 2.0, None, None))
    assert first_token_seconds(run) == [1.5, 4.0]
    assert first_token_seconds(run, "b") == [4.0]
    assert quantiles([float(value) for value in range(100, 0, -1)]) == Quantiles(50.0, 99.0)
    assert quantiles([]) == Quantiles(0.0, 0.0)
