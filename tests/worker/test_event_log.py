"""One suite for every event log."""

from collections.abc import Callable

import pytest

from forebay.worker.domain.usage import Attribution, Outcome, Trace, UsageEvent
from forebay.worker.event_log import EventLog, MemoryEventLog

from .doubles import attempt_id


def event(number: int) -> UsageEvent:
    attribution = Attribution("acme", "key", "basic", False, "bronze", "tiny", 0.5, "", {})
    return UsageEvent(
        attempt_id(number), attribution, "", 10, 0, 0, 5, 0, 1, 0, None, 1.0, 2.0, Outcome.COMPLETED, Trace()
    )


@pytest.fixture(params=[MemoryEventLog])
def make(request: pytest.FixtureRequest) -> Callable[[int], EventLog]:
    """Makes an empty log with a bound."""
    return request.param  # type: ignore[no-any-return]


def test_events_stay_in_order_until_acknowledged(make: Callable[[int], EventLog]) -> None:
    log = make(3)
    for n in (1, 2, 3):
        log.append(event(n))
    assert list(log.unacknowledged()) == [event(1), event(2), event(3)]
    assert list(log.unacknowledged(skip=2)) == [event(3)]
    log.acknowledge(2)
    assert list(log.unacknowledged()) == [event(3)]
    assert len(log) == 1


def test_it_is_bounded_and_says_so_before(make: Callable[[int], EventLog]) -> None:
    log = make(1)
    assert log.room == 1
    log.append(event(1))
    assert log.room == 0
    with pytest.raises(OverflowError):
        log.append(event(2))
    log.acknowledge(1)
    log.append(event(2))


def test_the_listener_hears_of_each_append(make: Callable[[int], EventLog]) -> None:
    log, heard = make(3), []
    log.listen(lambda: heard.append(len(log)))
    log.append(event(1))
    log.append(event(2))
    assert heard == [1, 2]
