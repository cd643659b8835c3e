"""A component that ends without being told to is noticed, however it ends."""

from __future__ import annotations

import asyncio

import pytest

from forebay import tasks


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(tasks, "_failed", [])
    monkeypatch.setattr(tasks, "_on_failure", lambda: heard.append("told"))
    return heard


async def for_ever() -> None:
    await asyncio.Event().wait()


async def raises() -> None:
    raise ValueError("a bug")


async def returns() -> None:
    pass


async def is_cancelled() -> None:
    # What it waits for was cancelled by somebody, as a channel that is closed does to its calls.
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


@pytest.mark.parametrize("work", [raises, returns, is_cancelled])
async def test_work_that_ends_early_is_the_failure_of_the_process(work: object, told: list[str]) -> None:
    async with tasks.background(work(), "sweeper") as task:  # type: ignore[operator]
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert tasks.failed() == ["sweeper"]
        assert told == ["told"]


@pytest.mark.parametrize(("work", "failures"), [(returns, 0), (raises, 1), (is_cancelled, 1)])
async def test_work_that_may_end_may_only_return(work: object, failures: int) -> None:
    async with tasks.background(work(), "readiness", ends=True) as task:  # type: ignore[operator]
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert len(tasks.failed()) == failures


async def test_the_end_of_the_block_is_nobodys_failure() -> None:
    async def complains() -> None:
        try:
            await for_ever()
        finally:
            raise ValueError("on the way out")

    for work in (for_ever(), complains()):
        async with tasks.background(work, "sweeper"):
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tasks.failed() == []


async def test_a_step_that_is_called_by_the_loop_is_guarded(told: list[str]) -> None:
    def step() -> None:
        raise KeyError("a bug")

    asyncio.get_running_loop().call_soon(tasks.guarded(step, "scheduler tick"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tasks.failed() == ["scheduler tick"]
    assert told == ["told"]
