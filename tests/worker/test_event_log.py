"""One suite for every event log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from forebay.errors import MeshError
from forebay.testing.clock import FakeClock
from forebay.worker.domain.usage import Outcome, UsageEvent
from forebay.worker.event_log import EventLog, MemoryEventLog
from forebay.worker.spool_event_log import open_spool

from .doubles import attempt_id, event
from .peers import within

Make = Callable[[int], AbstractAsyncContextManager[EventLog]]


@pytest.fixture(params=["memory", "spool"])
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Make:
    """Makes an empty log with a bound."""

    @asynccontextmanager
    async def memory(limit: int) -> AsyncIterator[EventLog]:
        yield MemoryEventLog(limit)

    if request.param == "memory":
        return memory
    return lambda limit: open_spool(tmp_path / "spool", limit, 1 << 20, clock)


def done(number: int) -> UsageEvent:
    return event(number, Outcome.COMPLETED, completion_to=5)


async def begin(log: EventLog, number: int) -> MeshError | None:
    """Begins an attempt, and returns what the log says to it."""
    answer: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
    log.begin(event(number), answer.set_result)
    return await within(answer)


async def finish(log: EventLog, *numbers: int) -> None:
    """Begins and ends attempts, and returns once their events can be sent."""
    ready = asyncio.Event()
    log.listen(ready.set)
    for number in numbers:
        assert await begin(log, number) is None
        log.finish(done(number))
        await within(ready.wait())
        ready.clear()


async def test_events_stay_in_order_until_acknowledged(make: Make) -> None:
    async with make(3) as log:
        await finish(log, 1, 2, 3)
        assert list(log.unacknowledged()) == [done(1), done(2), done(3)]
        assert list(log.unacknowledged(skip=2)) == [done(3)]
        log.acknowledge(2)
        assert list(log.unacknowledged()) == [done(3)]
        assert len(log) == 1


async def test_it_is_bounded_and_says_so_before(make: Make) -> None:
    async with make(1) as log:
        assert log.trouble is None
        assert await begin(log, 1) is None
        assert log.trouble is not None
        refused = await begin(log, 2)
        assert refused is not None
        assert refused.reason == "METERING_BEHIND"
        log.finish(done(1))
        assert log.trouble is not None
        await within(until_sendable(log))
        log.acknowledge(1)
        assert await begin(log, 2) is None


async def until_sendable(log: EventLog) -> None:
    ready = asyncio.Event()
    log.listen(ready.set)
    if not list(log.unacknowledged()):
        await ready.wait()


async def test_what_is_withdrawn_makes_room_and_is_never_sent(make: Make) -> None:
    async with make(1) as log:
        assert await begin(log, 1) is None
        log.withdraw(attempt_id(1))
        log.withdraw(attempt_id(1))
        assert await begin(log, 1) is None, "another grant brings it again"
        log.withdraw(attempt_id(1))
        await finish(log, 2)
        assert list(log.unacknowledged()) == [done(2)]


async def test_an_attempt_ends_once(make: Make) -> None:
    async with make(2) as log:
        with pytest.raises(KeyError):
            log.finish(done(1))
        await finish(log, 1)
        with pytest.raises(KeyError):
            log.finish(done(1))
        assert list(log.unacknowledged()) == [done(1)]


async def test_a_checkpoint_is_not_sent_while_the_worker_lives(make: Make) -> None:
    async with make(2) as log:
        assert await begin(log, 1) is None
        log.checkpoint([event(1, completion_to=3)])
        await finish(log, 2)
        assert list(log.unacknowledged()) == [done(2)]


async def test_a_rejected_event_is_acknowledged_like_any_other(make: Make) -> None:
    async with make(2) as log:
        await finish(log, 1, 2)
        log.reject(1)
        log.acknowledge(2)
        assert len(log) == 0
