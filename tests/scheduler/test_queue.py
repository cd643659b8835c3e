"""Who may wait, in which place, and for how long; and what gives way under pressure."""

from __future__ import annotations

import pytest

from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pressure import PressureRules
from forebay.scheduler.domain.request import AttemptKey, Measure, Request, ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler

from .builders import WHOLE, granted, grants, info, join, reasons, request, scheduler

GOLD, SILVER, BRONZE = ServiceClass.GOLD, ServiceClass.SILVER, ServiceClass.BRONZE


def submit(core: Scheduler, *asked: Request, now: float = 0.0) -> None:
    for one in asked:
        core.submit(one, "r", now)


def started(core: Scheduler, now: float) -> list[AttemptKey]:
    """Draws once and has all that was granted end at once, so that there is room again."""
    drawn = grants(core.tick(now))
    for grant in drawn:
        core.departure(grant.worker_id, grant.request.key, generated_tokens=1, cached_tokens=0, started=True)
    return [grant.request.key for grant in drawn]


# Held back.


def test_a_request_starts_no_earlier_than_it_is_told_and_does_not_count_as_waiting_until_then() -> None:
    core = scheduler(info())
    slowed = request(start_after_s=2.0)
    submit(core, slowed, now=10.0)
    assert granted(core.tick(10.0)) == []
    (pool,) = core.pools
    assert pool.queued == 1
    assert pool.flows.neediest() is None
    assert not core.due(11.999)
    assert granted(core.tick(11.999)) == []
    assert core.due(12.0)
    assert granted(core.tick(12.0)) == [slowed.key]


def test_it_does_not_hold_up_the_requests_behind_it() -> None:
    core = scheduler(info())
    slowed, free = request(start_after_s=2.0), request()
    submit(core, slowed, free)
    assert granted(core.tick(0.0)) == [free.key]


def test_a_request_that_could_not_start_in_time_any_more_ends_while_it_is_held_back() -> None:
    core = scheduler(info())
    slowed = request(start_after_s=5.0, remaining_s=3.0)
    submit(core, slowed)
    assert reasons(core.tick(3.0)) == {slowed.key: "DEADLINE_EXCEEDED"}
    assert granted(core.tick(10.0)) == []


def test_one_that_is_held_back_can_be_cancelled() -> None:
    core = scheduler(info())
    slowed = request(start_after_s=5.0)
    submit(core, slowed)
    core.cancel(slowed.key)
    assert granted(core.tick(9.0)) == []
    assert not [pool for pool in core.pools if pool.queued]


# Places.


def test_who_must_start_earliest_goes_first_and_a_continuation_before_all() -> None:
    core = scheduler(info(max_num_seqs=1))
    patient, first, hurried = request(), request(queue_timeout_s=9.0), request(queue_timeout_s=5.0)
    continuation = request(prompt_tokens=12, max_tokens=8, delivered_tokens=2)
    submit(core, patient, first, hurried, continuation)
    order = [key for _ in range(4) for key in started(core, 1.0)]
    assert order == [continuation.key, hurried.key, first.key, patient.key]


# Waits.


def test_a_flow_whose_pace_is_known_turns_away_who_would_start_too_late() -> None:
    core = scheduler(info(max_num_seqs=1), limits=Limits(pool=WHOLE, queue_timeout_s=100.0))
    submit(core, *(request() for _ in range(10)))
    for now in (0.0, 2.0, 4.0, 6.0):
        assert len(started(core, now)) == 1
    # One is served in two seconds, and those that wait for up to 100 s let hurried ones pass: the third of these is too late.
    hurried = [request(queue_timeout_s=5.0) for _ in range(4)]
    submit(core, *hurried, now=6.0)
    assert reasons(core.tick(6.0)) == dict.fromkeys([asked.key for asked in hurried[2:]], "DEADLINE_UNREACHABLE")
    # All six of the patient are ahead of another one, and it has the time.
    submit(core, request(), now=6.0)
    assert reasons(core.tick(6.0)) == {}


def test_nobody_is_turned_away_for_a_pace_of_long_ago() -> None:
    core = scheduler(info(max_num_seqs=1))
    submit(core, *(request() for _ in range(2)))
    for now in (0.0, 20.0):
        assert len(started(core, now)) == 1
    # The flow stopped waiting, and its pace is forgotten.
    hurried = request(queue_timeout_s=1.0)
    submit(core, hurried, now=20.0)
    assert started(core, 20.0) == [hurried.key]


@pytest.mark.parametrize("end", ["cancelled", "router lost", "timed out", "parked"])
def test_nor_when_the_last_that_waited_left_unserved(end: str) -> None:
    core = scheduler(info(max_num_seqs=1), limits=Limits(pool=WHOLE, queue_timeout_s=50.0))
    submit(core, *(request() for _ in range(2)))
    last = request(queue_timeout_s=100.0, excluded_workers=frozenset({"w1"} if end == "parked" else ()))
    submit(core, last)
    for now in (0.0, 2.0):
        assert len(started(core, now)) == 1
    if end == "cancelled":
        core.cancel(last.key)
    elif end == "router lost":
        core.router_lost("r")
    else:
        core.worker_draining("w1")
        core.tick(100.0)
        join(core, info("w2"))
    hurried = request(queue_timeout_s=1.0)
    submit(core, hurried, now=200.0)
    assert started(core, 200.0) == [hurried.key]


def test_a_continuation_is_refused_for_its_deadline_alone() -> None:
    core = scheduler(limits=Limits(pool=WHOLE, max_queued=1, max_queued_per_tenant=1))
    submit(core, request())
    continuation = request(prompt_tokens=12, max_tokens=8, delivered_tokens=2, remaining_s=3.0)
    submit(core, continuation)
    assert reasons(core.tick(0.0)) == {}
    assert reasons(core.tick(3.0)) == {continuation.key: "DEADLINE_EXCEEDED"}


# Pressure: how full the queue of ten is.


def pressed(waiting: int, tenant_id: str = "crowd", **rules: float) -> Scheduler:
    core = scheduler(limits=Limits(pool=WHOLE, max_queued=10, pressure=PressureRules(**rules)))
    submit(core, *(request(tenant_id, service_class=GOLD, start_after_s=0.0) for _ in range(waiting)))
    assert reasons(core.tick(0.0)) == {}
    return core


@pytest.mark.parametrize(
    ("waiting", "turned_away"), [(7, []), (8, [BRONZE]), (9, [BRONZE, SILVER]), (10, [BRONZE, SILVER, GOLD])]
)
def test_bronze_is_shed_before_silver_and_silver_before_gold(waiting: int, turned_away: list[ServiceClass]) -> None:
    for service_class in (BRONZE, SILVER, GOLD):
        core = pressed(waiting)
        asked = request("late", service_class=service_class)
        submit(core, asked)
        assert (asked.key in reasons(core.tick(0.0))) == (service_class in turned_away)


def test_a_class_that_is_shed_is_told_so_and_a_full_queue_is_called_full() -> None:
    core = pressed(9)
    silver, gold, beyond = request("late"), request("late", service_class=GOLD), request("late", service_class=GOLD)
    submit(core, silver, gold, beyond)
    assert reasons(core.tick(0.0)) == {silver.key: "SHED", beyond.key: "QUEUE_FULL"}


def test_who_has_more_than_his_part_of_what_waits_is_paced() -> None:
    core = pressed(4, paced_s=3.0)
    submit(core, request("few"))
    more, few = request("crowd"), request("few")
    submit(core, more, few)
    join(core, info())
    drawn = grants(core.tick(1.0))
    assert few.key in [grant.request.key for grant in drawn]
    assert more.key not in [grant.request.key for grant in drawn]
    (late,) = grants(core.tick(3.0))
    assert (late.request.key, late.measures) == (more.key, (Measure.PACED,))
    assert {grant.measures for grant in drawn} == {()}


def test_one_that_waits_alone_is_not_paced() -> None:
    core = pressed(6)
    submit(core, request("crowd"))
    join(core, info())
    assert len(granted(core.tick(0.0))) == 7


def test_max_tokens_is_shortened_where_the_client_allows_it() -> None:
    core = pressed(7, pace_from=1.0)
    shortened, firm, short = (
        request("a", least_max_tokens=4, service_class=GOLD),
        request("b", service_class=GOLD),
        request("c", least_max_tokens=20, service_class=GOLD),
    )
    submit(core, shortened, firm, short)
    join(core, info())
    drawn = {grant.request.key: (grant.request.max_tokens, grant.measures) for grant in grants(core.tick(0.0))}
    assert drawn[shortened.key] == (4, (Measure.SHORTENED,))
    assert drawn[firm.key] == drawn[short.key] == (10, ())


def test_below_the_first_threshold_nothing_is_done() -> None:
    core = pressed(3)
    asked = request("crowd", least_max_tokens=1, service_class=BRONZE)
    submit(core, request("other"), asked)
    join(core, info())
    drawn = {grant.request.key: grant for grant in grants(core.tick(0.0))}
    assert (drawn[asked.key].request.max_tokens, drawn[asked.key].measures) == (10, ())
