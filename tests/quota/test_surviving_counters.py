"""While the server is away: who is admitted, to how much, for how long; and what it knows once it is back."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import Code, MeshError
from forebay.journal import Journal
from forebay.policy.model import Limits, ServiceClass, TenantPolicy
from forebay.quota.counters import InMemoryCounters
from forebay.quota.domain.limits import Usage, amounts_of, rows_of
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.quota.domain.reservations import Decision, Order, Outcome, Router, Swept, Terms
from forebay.quota.surviving_counters import SurvivingCounters
from forebay.testing.clock import FakeClock

ROUTER = Router("router-1", 7)
TENANT = TenantPolicy("open", "basic", ServiceClass.BRONZE, 500, limits=Limits(requests_per_minute=6))


class Server(InMemoryCounters):
    """The twin, with an outage at will, after so many further calls."""

    calls_left = 10**9
    unknown = ""

    async def reserve(self, tenant_id: str, *arguments: Any) -> Decision:
        self._call()
        if tenant_id == self.unknown:
            raise CountersUnknownError(tenant_id)
        return await super().reserve(tenant_id, *arguments)

    async def settle(self, *arguments: Any) -> bool:
        self._call()
        return await super().settle(*arguments)

    def _call(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", "away", retry_after=1.0)


@pytest.fixture
def server(clock: FakeClock) -> Server:
    return Server(Terms(), lambda: int(clock.now() * 1000))


def survivor(server: Server, clock: FakeClock, folder: Path) -> SurvivingCounters:
    return around(Journal(folder / "journal"), server, clock)


def around(journal: Journal, server: Server, clock: FakeClock) -> SurvivingCounters:
    async def claim() -> Fraction:
        return Fraction(1)

    fails_open = {"open", "stuck"}.__contains__
    return SurvivingCounters(server, clock, Terms(), fails_open, 2, 60.0, journal, claim, lambda row: 40)


async def ask(counters: Any, number: int, tenant_id: str = "open") -> Outcome:
    order = Order(f"{number:032x}", ROUTER, 10, 10)
    decision: Decision = await counters.reserve(tenant_id, order, rows_of(TENANT, Usage(1, 10, 10)))
    return decision.outcome


async def used(server: Server) -> int:
    (state,) = await server.peek("open", rows_of(TENANT, Usage(0, 0, 0)))
    return state.used


async def test_who_fails_open_has_its_share_of_each_limit(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    counters = survivor(server, clock, tmp_path)
    server.calls_left = 0
    assert [await ask(counters, number) for number in range(4)] == [Outcome.ADMITTED] * 3 + [Outcome.REFUSED]
    with pytest.raises(MeshError) as caught:
        await ask(counters, 9, "closed")
    assert caught.value.reason == "QUOTA_STORE_UNAVAILABLE"


async def test_an_outage_admits_nobody_for_ever(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    counters = survivor(server, clock, tmp_path)
    server.calls_left = 0
    await ask(counters, 1)
    clock.advance(60)
    with pytest.raises(MeshError):
        await ask(counters, 2)


async def test_the_journal_is_bounded_for_whoever_has_no_limit(
    server: Server, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.quota.surviving_counters.MOST_ADMITTED", 2)
    counters = survivor(server, clock, tmp_path)
    server.calls_left = 0
    await ask(counters, 1)
    await ask(counters, 2, "stuck")
    with pytest.raises(MeshError) as caught:
        await ask(counters, 3)
    assert caught.value.reason == "QUOTA_STORE_UNAVAILABLE"


@pytest.mark.parametrize("dies", [False, True])
async def test_what_was_admitted_is_charged_once_before_anything_else(
    server: Server, clock: FakeClock, tmp_path: Path, dies: bool
) -> None:
    journal = Journal(tmp_path / "journal")
    counters = around(journal, server, clock)
    for number in range(5):
        await ask(counters, number)
    server.calls_left = 0
    for number in range(5, 8):
        await ask(counters, number)
    nothing = amounts_of(Usage(0, 0, 0))
    assert await counters.settle("open", f"{5:032x}", nothing)
    assert not await counters.settle("open", f"{5:032x}", nothing)
    with pytest.raises(MeshError):  # one from before: its router asks again
        await counters.settle("open", f"{1:032x}", nothing)
    if dies:
        journal = Journal(tmp_path / "journal")
        counters = around(journal, server, clock)
    server.calls_left = 2  # away again in the middle of the replay
    await ask(counters, 8)
    server.calls_left = 10**9
    assert await ask(counters, 9) is Outcome.REFUSED
    assert await used(server) >= 7
    assert await counters.settle("open", f"{6:032x}", nothing)
    await journal.synced()
    assert Journal(tmp_path / "journal").left == []


async def test_a_server_that_comes_and_goes_admits_no_more(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    counters = survivor(server, clock, tmp_path)
    outcomes = []
    for number in range(5):
        server.calls_left = 0
        outcomes.append(await ask(counters, number))
        server.calls_left = 10**9
        await counters.sweep("open", 1)
    assert outcomes == [Outcome.ADMITTED] * 3 + [Outcome.REFUSED] * 2
    assert await used(server) == 3


async def test_what_was_charged_is_not_charged_by_the_next_life(
    server: Server, clock: FakeClock, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    counters = around(journal, server, clock)
    server.calls_left = 0
    await ask(counters, 1)
    await ask(counters, 2, "stuck")
    assert await counters.settle("open", f"{1:032x}", amounts_of(Usage(1, 10, 5)))
    server.calls_left, server.unknown = 10**9, "stuck"
    await counters.sweep("open", 1)
    await journal.synced()
    clock.advance(700)  # the settlement is forgotten, and nothing tells a repeat of it from the first
    assert await server.sweep("open", 9) == Swept(forgotten=1)
    await survivor(server, clock, tmp_path).sweep("open", 1)
    assert await used(server) == 0


async def test_what_was_admitted_on_a_day_that_is_over_does_not_count_on_the_next(
    server: Server, clock: FakeClock, tmp_path: Path
) -> None:
    daily = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))

    async def reserve(store: Any, number: int, tokens: int) -> None:
        usage = Usage(1, tokens, 0)
        await store.reserve("open", Order(f"{number:032x}", ROUTER, tokens, 0), rows_of(daily, usage, clock.now()))

    counters = survivor(server, clock, tmp_path)
    server.calls_left = 0
    await reserve(counters, 1, 10)
    clock.advance(86_400)
    server.calls_left = 10**9
    await reserve(server, 2, 3)  # by way of another replica
    (today,) = await counters.peek("open", rows_of(daily, Usage(0, 0, 0), clock.now()))
    assert today.used == 3
    assert len(await server.reservations("open", "", 9)) == 2


async def test_a_line_cut_short_was_never_answered(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    counters = survivor(server, clock, tmp_path)
    server.calls_left = 0
    await ask(counters, 1)
    with (tmp_path / "journal").open("a") as journal:
        journal.write('{"tenant": "op')
    server.calls_left = 10**9
    again = survivor(server, clock, tmp_path)
    server.calls_left = 0
    await ask(again, 2)
    server.calls_left = 10**9
    assert await ask(survivor(server, clock, tmp_path), 3) is Outcome.ADMITTED
    assert await used(server) == 3


async def test_of_a_day_there_is_a_share_of_what_was_left(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    counters = survivor(server, clock, tmp_path)
    daily = replace(TENANT, limits=Limits(tokens_per_day=1_000_000))
    rows = rows_of(daily, Usage(1, 5, 5), clock.now())
    server.calls_left = 0
    decisions = [await counters.reserve("open", Order(f"{number:032x}", ROUTER, 5, 5), rows) for number in range(3)]
    assert [each.outcome for each in decisions] == [Outcome.ADMITTED] * 2 + [Outcome.REFUSED], "20 of the 40 left"
