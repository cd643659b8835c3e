"""Threads taken by turns: a tenant with many long prompts waits behind its own, and never for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from forebay.errors import Code, MeshError
from forebay.router.tokenizer_threads import TokenizerThreads


class Prompts:
    """Work for one thread: each prompt ends when it is let go."""

    def __init__(self, threads: TokenizerThreads) -> None:
        self.threads = threads
        self.begun: list[str] = []
        self._gate = threading.Semaphore(0)

    def begin(self, tenant: str, number: int) -> asyncio.Task[str]:
        name = f"{tenant} {number}"

        def work() -> str:
            self.begun.append(name)
            assert self._gate.acquire(timeout=10)
            return name

        return asyncio.create_task(self.threads.run(tenant, work))

    def let_go(self, count: int = 1) -> None:
        self._gate.release(count)


@pytest.fixture
def prompts() -> Iterator[Prompts]:
    with TokenizerThreads(1, max_waiting=3) as threads:
        prompts = Prompts(threads)
        yield prompts
        prompts.let_go(100)


async def test_tenants_take_turns(prompts: Prompts) -> None:
    tasks = [prompts.begin("flood", number) for number in range(4)]
    await asyncio.sleep(0)
    tasks += [prompts.begin("acme", 0), prompts.begin("globex", 0), prompts.begin("acme", 1)]
    await asyncio.sleep(0)
    prompts.let_go(7)
    names = await asyncio.gather(*tasks)
    assert names == ["flood 0", "flood 1", "flood 2", "flood 3", "acme 0", "globex 0", "acme 1"]
    assert prompts.begun == ["flood 0", "flood 1", "acme 0", "globex 0", "flood 2", "acme 1", "flood 3"]


async def test_a_tenants_queue_is_bounded(prompts: Prompts) -> None:
    tasks = [prompts.begin("flood", number) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(MeshError) as caught:
        await prompts.begin("flood", 4)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_FULL")
    other = prompts.begin("acme", 0)
    prompts.let_go(5)
    assert await other == "acme 0"
    await asyncio.gather(*tasks)


async def test_who_leaves_passes_its_turn_on(prompts: Prompts) -> None:
    first, second, third, fourth = [prompts.begin("acme", number) for number in range(4)]
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()  # the thread goes on, and nobody else begins meanwhile
    await asyncio.gather(first, second, return_exceptions=True)
    assert prompts.begun == ["acme 0"]
    prompts.let_go()
    while len(prompts.begun) < 2:
        await asyncio.sleep(0)
    assert prompts.begun[1] == "acme 2"
    prompts.let_go(2)
    assert await asyncio.gather(third, fourth) == ["acme 2", "acme 3"]


async def test_a_turn_that_came_too_late_is_passed_on(prompts: Prompts) -> None:
    first, second, third = [prompts.begin("acme", number) for number in range(3)]
    await asyncio.sleep(0)
    prompts.threads._next()  # as if another thread had come free; the second has its turn and does not know yet
    second.cancel()
    prompts.let_go(2)
    assert await asyncio.gather(first, third) == ["acme 0", "acme 2"]


async def test_what_fails_in_a_thread_is_told_and_the_thread_is_free_again(prompts: Prompts) -> None:
    def fail() -> None:
        raise MeshError(Code.INVALID_ARGUMENT, "BAD_PROMPT", "no")

    for _ in range(2):
        with pytest.raises(MeshError, match="BAD_PROMPT"):
            await prompts.threads.run("acme", fail)
