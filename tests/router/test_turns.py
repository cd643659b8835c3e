"""Places taken by turns: a tenant with many calls waits behind its own, and never for ever."""

from __future__ import annotations

import asyncio

import pytest

from forebay.errors import Code, MeshError
from forebay.router.turns import Turns


class Calls:
    """Calls that each keep their place until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    def begin(self, tenant: str, number: int, size: int = 0) -> asyncio.Task[str]:
        name = f"{tenant} {number}"
        gate = self._gates[name] = asyncio.Event()

        async def call() -> str:
            async with self.turns.turn(tenant, size):
                self.begun.append(name)
                await gate.wait()
                return name

        return asyncio.create_task(call())

    def end(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()

    async def all_end(self, tasks: list[asyncio.Task[str]]) -> list[str]:
        self.end(*self._gates)
        return await asyncio.gather(*tasks)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def calls() -> Calls:
    return Calls(Turns(1, 1, max_waiting=3, max_waiting_bytes=100))


async def test_tenants_take_turns(calls: Calls) -> None:
    tasks = [calls.begin("flood", number) for number in range(4)]
    await settled()
    tasks += [calls.begin("acme", 0), calls.begin("globex", 0), calls.begin("acme", 1)]
    await settled()
    await calls.all_end(tasks)
    assert calls.begun == ["flood 0", "flood 1", "acme 0", "globex 0", "flood 2", "acme 1", "flood 3"]


async def test_one_tenant_never_has_all_places() -> None:
    calls = Calls(Turns(3, 2, max_waiting=9, max_waiting_bytes=0))
    tasks = [calls.begin("flood", number) for number in range(4)]
    await settled()
    assert calls.begun == ["flood 0", "flood 1"]
    tasks.append(calls.begin("acme", 0))
    await settled()
    assert calls.begun == ["flood 0", "flood 1", "acme 0"], "at once, whatever the other does"
    calls.end("acme 0")
    await settled()
    assert len(calls.begun) == 3, "the place that is free is kept for another"
    calls.end("flood 1")
    await settled()
    assert calls.begun[3:] == ["flood 2"]
    await calls.all_end(tasks)


async def test_a_tenants_queue_is_bounded_in_calls(calls: Calls) -> None:
    tasks = [calls.begin("flood", number) for number in range(4)]
    await settled()
    with pytest.raises(MeshError) as caught:
        await calls.begin("flood", 4)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_FULL")
    tasks.append(calls.begin("acme", 0))
    assert await calls.all_end(tasks) == ["flood 0", "flood 1", "flood 2", "flood 3", "acme 0"]


async def test_a_tenants_queue_is_bounded_in_bytes(calls: Calls) -> None:
    tasks = [calls.begin("flood", 0, 90), calls.begin("flood", 1, 90)]
    await settled()
    with pytest.raises(MeshError) as caught:
        await calls.begin("flood", 2, 20)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_FULL")
    (violation,) = caught.value.quota_violations
    assert (violation.value, violation.used, violation.asked) == (100, 90, 20)
    tasks.append(calls.begin("flood", 3, 10))
    calls.end("flood 0")
    await settled()
    assert calls.begun == ["flood 0", "flood 1"]
    tasks.append(calls.begin("flood", 4, 90))
    await settled()
    assert not tasks[-1].done(), "what has begun no longer counts"
    await calls.all_end(tasks)


async def test_the_bytes_of_all_tenants_are_bounded_together(calls: Calls) -> None:
    tasks = [calls.begin("first", 0)]
    tasks += [calls.begin(f"tenant-{number}", 0, 100) for number in range(4)]
    await settled()
    with pytest.raises(MeshError) as caught:
        await calls.begin("last", 0, 1)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ROUTER_FULL")
    await calls.all_end(tasks)


async def test_who_leaves_passes_its_turn_on(calls: Calls) -> None:
    first, second, third, fourth = [calls.begin("acme", number) for number in range(4)]
    await settled()
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert await calls.all_end([third, fourth]) == ["acme 2", "acme 3"]
    assert calls.begun == ["acme 0", "acme 2", "acme 3"]


async def test_a_turn_that_came_too_late_is_passed_on(calls: Calls) -> None:
    first, second, third = [calls.begin("acme", number) for number in range(3)]
    await settled()
    calls.end("acme 0")
    await asyncio.sleep(0)  # the first has ended, and the second does not know yet that it has the place
    second.cancel()
    assert await calls.all_end([first, third]) == ["acme 0", "acme 2"]


async def test_nobody_is_left_who_has_gone(calls: Calls) -> None:
    tasks = [calls.begin("acme", 0), *(calls.begin(f"gone-{number}", 0, 10) for number in range(3))]
    await settled()
    for task in tasks[1:]:
        task.cancel()
    await settled()
    tasks.append(calls.begin("globex", 0, 100))
    await settled()
    assert await calls.all_end([tasks[0], tasks[-1]]) == ["acme 0", "globex 0"]
    assert not calls.turns._held
    assert not calls.turns._taken
