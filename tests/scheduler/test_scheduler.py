"""The core, one rule at a time."""

from __future__ import annotations

import pytest

from forebay.errors import Code, MeshError
from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import AttemptKey
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import GRANT_MARGIN_S, Scheduler
from forebay.scheduler.domain.worker import EngineState, RunningAttempt, Worker

from .builders import EPOCH, MODEL, WHOLE, flow, granted, grants, info, join, key, reasons, request, scheduler


def worker(core: Scheduler, worker_id: str = "w1") -> Worker:
    (found,) = [pool.workers[worker_id] for pool in core.pools if worker_id in pool.workers]
    return found


def run(core: Scheduler, attempt: AttemptKey, generated: int = 10, cached: int = 0, *, started: bool = True) -> None:
    core.departure("w1", attempt, generated_tokens=generated, cached_tokens=cached, started=started)


# Grants and batches.


def test_a_grant_holds_all_that_its_worker_checks() -> None:
    core = scheduler(info("w1", block_tokens=16))
    asked = request(adapter="", waited_s=3.0)
    core.submit(asked, "r/1", now=5.0)
    decisions = core.tick(6.0)
    (batch,) = decisions.batches
    (grant,) = batch.grants
    assert (grant.request, grant.router) == (asked, "r/1")
    assert (grant.worker_id, grant.worker_incarnation, grant.worker_address) == ("w1", 1, "w1:1")
    assert (grant.epoch, grant.batch_id) == (batch.epoch, batch.batch_id) == (EPOCH, 1)
    assert grant.kv_tokens == 32  # 20 tokens in blocks of 16
    assert (grant.enqueued_at, grant.granted_at, grant.expires_at) == (2.0, 6.0, 8.0)


def test_a_tick_makes_one_batch_for_each_worker_and_their_numbers_grow() -> None:
    core = scheduler(info("w1", 40), info("w2", 40))
    for _ in range(4):
        core.submit(request(), "r", 0.0)
    batches = core.tick(0.0).batches
    assert {batch.worker_id: len(batch.grants) for batch in batches} == {"w1": 2, "w2": 2}
    for grant in [grant for batch in batches for grant in batch.grants]:
        core.departure(grant.worker_id, grant.request.key, generated_tokens=1, cached_tokens=0, started=True)
    core.submit(request(), "r", 1.0)
    (later,) = core.tick(1.0).batches
    assert later.batch_id > max(batch.batch_id for batch in batches)


def test_a_batch_mixes_tenants() -> None:
    core = scheduler(info("w1", 80))
    for tenant_id in ("a", "a", "a", "b", "b", "b"):
        core.submit(request(tenant_id), "r", 0.0)
    assert sorted(grant.request.tenant_id for grant in grants(core.tick(0.0))) == ["a", "a", "b", "b"]


def test_within_a_flow_who_has_waited_longest_goes_first_whenever_he_submitted() -> None:
    core = scheduler(info("w1", 20))
    late, early = request(), request(waited_s=9.0)
    core.submit(late, "r", 1.0)
    core.submit(early, "r", 2.0)
    assert granted(core.tick(2.0)) == [early.key]


def test_the_worker_with_most_free_room_is_taken() -> None:
    core = scheduler(info("w1", 100), info("w2", 115))
    for _ in range(3):
        core.submit(request(), "r", 0.0)
    assert [(grant.worker_id) for grant in grants(core.tick(0.0))].count("w2") == 2


@pytest.mark.parametrize(
    ("capacity", "prompt_tokens", "fit"),
    [
        ({"kv_tokens": 59}, 10, 2),
        ({"kv_tokens": 79, "block_tokens": 16}, 10, 2),  # 20 tokens take 32, and 79 are 64 in whole blocks
        ({"max_num_seqs": 3}, 10, 3),
        ({"max_num_batched_tokens": 10}, 10, 2),
        ({"max_num_batched_tokens": 4}, 10, 1),  # longer than the bound: alone, but not never
    ],
)
def test_a_worker_gets_no_more_than_it_holds(capacity: dict[str, int], prompt_tokens: int, fit: int) -> None:
    core = scheduler(info("w1", **capacity))
    for _ in range(10):
        core.submit(request(prompt_tokens=prompt_tokens), "r", 0.0)
    assert len(granted(core.tick(0.0))) == fit


def test_a_computed_prompt_makes_way_for_the_next() -> None:
    core = scheduler(info("w1", max_num_batched_tokens=5))
    first, second = request(), request()
    core.submit(first, "r", 0.0)
    core.submit(second, "r", 0.0)
    assert granted(core.tick(0.0)) == [first.key]
    core.progress("w1", first.key, 0, prefilled=True)
    assert granted(core.tick(0.1)) == [second.key]


def test_only_workers_of_the_model_the_pool_and_the_adapter_will_do() -> None:
    limits = Limits(pool=WHOLE, adapters=frozenset({(MODEL, "acme-1", "acme")}))
    core = scheduler(info("w1"), info("w2", pool="gold"), info("w3", pool="lora", max_adapters=1), limits=limits)
    plain, pooled, adapted = request(), request(pool="gold"), request(pool="lora", adapter="acme-1")
    other, unadapted = request(model="other"), request(adapter="acme-1")
    for asked in (plain, pooled, adapted, other, unadapted):
        core.submit(asked, "r", 0.0)
    assert {grant.request.key: grant.worker_id for grant in grants(core.tick(0.0))} == {
        plain.key: "w1",
        pooled.key: "w2",
        adapted.key: "w3",
    }


@pytest.mark.parametrize(("pinned", "evicted"), [(set(), 4), ({4}, 3), ({1, 2, 3, 4}, None)])
def test_the_newest_that_may_be_gives_way_to_a_tenant_that_has_nothing(pinned: set[int], evicted: int | None) -> None:
    rules = PoolRules(room=RoomRules(alpha=1.0), eviction=EvictionRules(after_s=1.0, more_s=0.0))
    core = scheduler(info("w1", kv_tokens=100), limits=Limits(pool=rules))
    held = [request(prompt_tokens=20, max_tokens=4, pinned=number in pinned) for number in (1, 2, 3, 4)]
    for each in held:
        core.submit(each, "r", 0.0)
    assert len(granted(core.tick(0.0))) == 4
    core.submit(request("globex", prompt_tokens=20, max_tokens=4), "r", 0.0)
    assert core.tick(0.0).evictions == ()
    for each in held:
        core.progress("w1", each.key, 1, prefilled=True)
    assert [eviction.key for eviction in core.tick(1.0).evictions] == (
        [] if evicted is None else [held[evicted - 1].key]
    )


@pytest.mark.parametrize("whose", [None, "globex"])
def test_an_adapter_that_is_not_the_tenants_is_refused_whosever_it_is(whose: str | None) -> None:
    adapters = frozenset({(MODEL, "lora", whose)}) if whose else frozenset()
    core = scheduler(info("w1", max_adapters=1), limits=Limits(pool=WHOLE, adapters=adapters))
    core.submit(request(adapter="lora"), "r", 0.0)
    (rejection,) = core.tick(0.0).rejections
    assert (rejection.error.code, rejection.error.reason) == (Code.NOT_FOUND, "ADAPTER_NOT_FOUND")


def test_an_excluded_worker_is_passed_by_and_does_not_hold_up_the_flow() -> None:
    core = scheduler(info("w1"))
    broken, fine = request(excluded_workers=frozenset({"w1"})), request()
    core.submit(broken, "r", 0.0)
    core.submit(fine, "r", 0.0)
    assert granted(core.tick(0.0)) == [fine.key]
    join(core, info("w2"), now=1.0)
    assert [(grant.request.key, grant.worker_id) for grant in grants(core.tick(1.0))] == [(broken.key, "w2")]


def test_a_worker_that_has_restarted_is_no_longer_excluded() -> None:
    core = scheduler(info("w1"))
    asked = request(excluded_workers=frozenset({"w1"}))
    core.submit(asked, "r", 0.0)
    assert granted(core.tick(0.0)) == []
    join(core, info("w1", incarnation=2), now=1.0)
    assert granted(core.tick(1.0)) == [asked.key]


# Charges.


def test_input_is_charged_on_dispatch_and_output_as_it_comes() -> None:
    core = scheduler(info())
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    assert flow(core, "acme").service_tenths == 100
    core.progress("w1", asked.key, 3, prefilled=True)
    core.progress("w1", asked.key, 2, prefilled=True)  # late: changes nothing
    assert flow(core, "acme").service_tenths == 160
    core.submit(request(), "r", 0.0)
    run(core, asked.key, generated=5, cached=4)
    assert flow(core, "acme").service_tenths == 100 + 100 - 4 * 9


def test_no_more_is_charged_than_was_granted() -> None:
    core = scheduler(info())
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    core.progress("w1", asked.key, 10**9, prefilled=True)
    assert flow(core, "acme").service_tenths == 100 + 20 * asked.max_tokens


def test_recomputation_is_charged_to_nobody() -> None:
    core = scheduler(info())
    asked = request(key=key(attempt=2), prompt_tokens=15, delivered_tokens=5)
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    assert flow(core, "acme").service_tenths == 0
    core.progress("w1", asked.key, 1, prefilled=True)
    assert flow(core, "acme").service_tenths == 20


@pytest.mark.parametrize("end", ["decline", "expired", "never started"])
def test_what_never_ran_costs_nothing_and_frees_its_room(end: str) -> None:
    core = scheduler(info("w1", 20))
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    next_one = request()
    core.submit(next_one, "r", 0.0)
    if end == "decline":
        core.decline(asked.key)
    elif end == "expired":
        core.entry_expired("w1", asked.key)
    else:
        run(core, asked.key, generated=0, started=False)
    decisions = core.tick(0.1)
    assert granted(decisions) == [next_one.key]
    assert flow(core, "acme").service_tenths == 100
    assert [w.key for w in decisions.withdrawals] == ([asked.key] if end == "decline" else [])


def test_cancelling_a_grant_frees_its_room_but_does_not_make_prefill_free() -> None:
    core = scheduler(info("w1", 20))
    asked, other = request(), request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    core.submit(other, "r", 0.0)
    core.cancel(asked.key)
    decisions = core.tick(0.1)
    assert [withdrawal.key for withdrawal in decisions.withdrawals] == [asked.key]
    assert granted(decisions) == [other.key]
    assert flow(core, "acme").service_tenths == 200


def test_a_running_attempt_that_is_cancelled_or_declined_ends_by_its_workers_word() -> None:
    core = scheduler(info("w1", 20))
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    core.progress("w1", asked.key, 1, prefilled=True)
    core.cancel(asked.key)
    core.decline(asked.key)
    assert core.tick(0.1).withdrawals == ()
    assert worker(core).promised == 20
    run(core, asked.key, generated=2)
    assert worker(core).promised == 0


# Refusals.


def test_a_request_that_no_known_worker_can_ever_hold_is_refused_at_once() -> None:
    core = scheduler(info("w1", 100, max_model_len=50))
    for asked in (request(max_tokens=41), request(prompt_tokens=1, max_tokens=100)):
        core.submit(asked, "r", 0.0)
        (rejection,) = core.tick(0.0).rejections
        assert (rejection.key, rejection.error.code) == (asked.key, Code.INVALID_ARGUMENT)
        assert rejection.error.reason == "TOO_LARGE"


def test_a_request_that_waited_for_a_worker_is_refused_when_that_one_is_too_small() -> None:
    core = scheduler()
    asked, small = request(prompt_tokens=500), request()
    core.submit(asked, "r", 0.0)
    core.submit(small, "r", 0.0)
    join(core, info("w1", 100))
    decisions = core.tick(0.0)
    assert reasons(decisions) == {asked.key: "TOO_LARGE"}
    assert granted(decisions) == [small.key]


def test_queues_are_bounded_for_a_tenant_and_in_all() -> None:
    core = scheduler(limits=Limits(max_queued=3, max_queued_per_tenant=2, retry_after_s=1.5))
    asked = {name: request(name[0]) for name in ("a1", "a2", "a3", "b1", "b2")}
    for one in asked.values():
        core.submit(one, "r", 0.0)
    rejections = core.tick(0.0).rejections
    assert [rejection.key for rejection in rejections] == [asked["a3"].key, asked["b2"].key]
    for rejection in rejections:
        assert (rejection.error.code, rejection.error.reason) == (Code.UNAVAILABLE, "QUEUE_FULL")
        assert rejection.error.retry_after == 1.5
    core.cancel(asked["a1"].key)
    core.submit(request("a"), "r", 0.0)
    assert core.tick(0.0).rejections == ()


@pytest.mark.parametrize(
    ("waits", "until", "reason"),
    [
        ({"remaining_s": 5.0}, 5.0, "DEADLINE_EXCEEDED"),
        ({"queue_timeout_s": 4.0}, 4.0, "QUEUE_TIMEOUT"),
        ({"remaining_s": 60.0, "queue_timeout_s": 4.0}, 4.0, "QUEUE_TIMEOUT"),
        ({"remaining_s": 3.0, "queue_timeout_s": 4.0}, 3.0, "DEADLINE_EXCEEDED"),
        ({}, 30.0, "QUEUE_TIMEOUT"),
        ({"remaining_s": 0.0}, 0.0, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_wait_ends_in_time(waits: dict[str, float], until: float, reason: str) -> None:
    core = scheduler(info("w1", 20))
    core.submit(request(), "r", 0.0)
    core.tick(0.0)
    asked = request(**waits)
    core.submit(asked, "r", 100.0)
    if until:
        assert reasons(core.tick(99.9 + until)) == {}
    assert core.due(100.0 + until)
    decisions = core.tick(100.0 + until)
    assert reasons(decisions) == {asked.key: reason}
    expected = Code.DEADLINE_EXCEEDED if reason == "DEADLINE_EXCEEDED" else Code.UNAVAILABLE
    assert decisions.rejections[0].error.code is expected
    assert not core.due(1e9)


def test_a_model_without_workers_is_waited_for_but_not_for_ever() -> None:
    core = scheduler(limits=Limits(queue_timeout_s=30.0))
    lucky, patient = request(), request(model="other", remaining_s=3600.0)
    core.submit(lucky, "r", 0.0)
    core.submit(patient, "r", 0.0)
    assert core.tick(10.0).rejections == ()
    join(core, info("w1"), now=20.0)
    assert granted(core.tick(20.0)) == [lucky.key]
    decisions = core.tick(30.0)
    assert reasons(decisions) == {patient.key: "QUEUE_TIMEOUT"}
    assert "other" in decisions.rejections[0].error.message
    assert [pool.model for pool in core.pools] == [MODEL]  # nobody would miss the other pool


# The same submission again.


def test_a_waiting_submission_that_comes_again_keeps_its_place_and_is_answered_to_the_new_session() -> None:
    core = scheduler()
    first, second = request(), request()
    core.submit(first, "r/1", 0.0)
    core.submit(second, "r/1", 1.0)
    core.submit(first, "r/2", 2.0)
    core.router_lost("r/1")
    join(core, info("w1"))
    assert [(grant.request.key, grant.router) for grant in grants(core.tick(3.0))] == [(first.key, "r/2")]


def test_a_granted_submission_that_comes_again_gets_the_same_grant() -> None:
    core = scheduler(info())
    asked = request()
    core.submit(asked, "r/1", 0.0)
    (grant,) = grants(core.tick(0.0))
    core.submit(asked, "r/2", 1.0)
    decisions = core.tick(1.0)
    assert decisions.batches == ()
    (again,) = decisions.repeats
    assert (again.batch_id, again.expires_at, again.router) == (grant.batch_id, grant.expires_at, "r/2")


def test_a_grant_that_has_expired_is_not_given_again_but_anew() -> None:
    core = scheduler(info())
    asked = request()
    core.submit(asked, "r", 0.0)
    (grant,) = grants(core.tick(0.0))
    core.submit(asked, "r", 2.0)
    decisions = core.tick(2.0)
    assert [withdrawal.key for withdrawal in decisions.withdrawals] == [asked.key]
    (anew,) = grants(decisions)
    assert anew.batch_id > grant.batch_id
    assert worker(core).promised == 20


# Head of line (P8).


def crowd(core: Scheduler, count: int, now: float) -> list[AttemptKey]:
    """Small requests of a tenant that is far ahead of everyone."""
    asked = [request("small", prompt_tokens=5, max_tokens=5) for _ in range(count)]
    for one in asked:
        core.submit(one, "r", now)
    return [one.key for one in asked]


def test_a_head_that_does_not_fit_has_the_worker_kept_for_it_whoever_comes() -> None:
    core = scheduler(info("w1", 100))
    crowd(core, 10, 0.0)
    running = granted(core.tick(0.0))
    large = request("large", prompt_tokens=95, max_tokens=5)
    core.submit(large, "r", 0.0)
    crowd(core, 5, 0.0)
    for number in range(10):
        run(core, running.pop(0), generated=5)
        core.submit(request(f"new-{number}"), "r", 0.1)
        running += granted(core.tick(0.1))
    assert running == [large.key]


def test_meanwhile_others_are_served_on_other_workers() -> None:
    core = scheduler(info("w1", 100), info("w2", 99))
    crowd(core, 19, 0.0)
    running = grants(core.tick(0.0))
    large = request("large", prompt_tokens=95, max_tokens=5)
    core.submit(large, "r", 0.0)
    waiting = crowd(core, 10, 0.0)
    new = []
    for grant in [grant for grant in running if grant.worker_id == "w1"]:
        core.departure("w1", grant.request.key, generated_tokens=5, cached_tokens=0, started=True)
        new += grants(core.tick(1.0))
    # The last one has emptied w1, which had the most room all the while; what came free on w2 before went to others.
    assert [grant.worker_id for grant in new if grant.request.key == large.key] == ["w1"]
    assert {grant.worker_id for grant in new if grant.request.key in waiting} <= {"w2"}


# Workers that come, go and come back (P1, P3).


def running_on(attempt: AttemptKey, *, generated: int = 0, started: bool = True) -> RunningAttempt:
    return RunningAttempt(attempt, "acme", kv_tokens=20, generated_tokens=generated, started=started)


def test_what_peers_tell_of_from_before_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("claims", "scheduler"):
        monkeypatch.setattr(f"forebay.scheduler.domain.{module}.MAX_REPORTED", 2)
    core = Scheduler(Limits(), EPOCH)
    core.worker_registered(info())
    with pytest.raises(MeshError, match="TOO_MANY_REPORTED"):
        core.worker_running("w1", [running_on(key()) for _ in range(3)])
    for _ in range(2):
        core.claim(request(), "router", "w1")
    with pytest.raises(MeshError, match="TOO_MANY_REPORTED"):
        core.claim(request(), "router", "w1")


def test_nothing_is_granted_before_a_worker_has_said_all_that_it_holds() -> None:
    core = scheduler()
    asked = request()
    core.submit(asked, "r", 0.0)
    core.worker_registered(info("w1", 55))
    core.worker_running("w1", [running_on(key())])
    assert granted(core.tick(0.0)) == []
    core.worker_running("w1", [running_on(key())])
    core.worker_reported("w1", 0.0)
    for _ in range(3):
        core.submit(request(), "r", 0.0)
    assert granted(core.tick(0.0)) == [asked.key]
    assert worker(core).promised == 60


def test_a_worker_that_is_lost_gets_nothing_and_keeps_what_it_runs() -> None:
    core = scheduler(info("w1", 40))
    asked, next_one = request(), request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    core.progress("w1", asked.key, 1, prefilled=True)
    core.worker_lost("w1", 1.0)
    core.submit(next_one, "r", 1.0)
    assert granted(core.tick(1.0)) == []
    assert worker(core).promised == 20
    core.worker_registered(info("w1", 40))
    core.worker_running("w1", [running_on(asked.key, generated=4)])
    core.worker_reported("w1", 2.0)
    assert granted(core.tick(2.0)) == [next_one.key]
    assert flow(core, "acme").service_tenths == 100 + 4 * 20 + 100
    assert worker(core).promised == 40


def test_what_ended_while_its_worker_was_away_is_gone_and_stays_charged() -> None:
    core = scheduler(info())
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    core.progress("w1", asked.key, 1, prefilled=True)
    core.worker_lost("w1", 0.0)
    join(core, info())
    assert worker(core).promised == 0
    core.submit(request(), "r", 0.0)
    assert flow(core, "acme").service_tenths == 120


@pytest.mark.parametrize("heard", ["progress", "report"])
def test_a_grant_whose_batch_was_lost_holds_its_room_until_its_payload_can_no_longer_come(heard: str) -> None:
    core = scheduler(info("w1", 40))
    coming, lost = request(), request()
    for asked in (coming, lost):
        core.submit(asked, "r", 0.0)
    (grant, _) = grants(core.tick(0.0))
    core.worker_lost("w1", 0.1)
    join(core, info("w1", 40), now=0.2)
    assert worker(core).promised == 40
    if heard == "progress":
        core.progress("w1", coming.key, 1, prefilled=True)
    else:
        core.worker_lost("w1", 0.3)
        core.worker_registered(info("w1", 40))
        core.worker_running("w1", [running_on(coming.key)])
        core.worker_reported("w1", 0.4)
    core.tick(grant.expires_at + GRANT_MARGIN_S)
    assert list(worker(core).in_flight) == [coming.key]


def test_a_new_life_of_a_worker_holds_nothing_of_the_old_one() -> None:
    core = scheduler(info("w1", 20))
    asked = request()
    core.submit(asked, "r", 0.0)
    core.tick(0.0)
    join(core, info("w1", 20, incarnation=2))
    again = request(key=AttemptKey(asked.key.request_id, 2))
    core.submit(again, "r", 0.0)
    (grant,) = grants(core.tick(0.0))
    assert (grant.request.key, grant.worker_incarnation) == (again.key, 2)
    assert flow(core, "acme").service_tenths == 100  # the first attempt yielded nothing


def test_an_old_life_of_a_worker_is_turned_away() -> None:
    core = scheduler(info("w1", incarnation=2))
    with pytest.raises(MeshError, match="STALE_INCARNATION"):
        core.worker_registered(info("w1", incarnation=1))


def test_a_new_life_whose_clock_has_been_set_back_is_taken_once_the_old_one_is_gone() -> None:
    core = scheduler(info("w1", incarnation=2))
    core.worker_lost("w1", 0.0)
    join(core, info("w1", incarnation=1))
    core.submit(request(), "r", 0.0)
    (grant,) = grants(core.tick(0.0))
    assert grant.worker_incarnation == 1


def test_a_worker_that_stays_away_is_forgotten() -> None:
    core = scheduler(info("w1"), limits=Limits(forget_worker_s=60.0))
    core.submit(request(), "r", 0.0)
    core.tick(0.0)
    core.worker_lost("w1", 0.0)
    core.tick(59.0)
    assert core.pools
    core.tick(60.0)
    assert not core.pools


@pytest.mark.parametrize("stop", ["draining", "unhealthy"])
def test_a_worker_that_drains_or_cannot_serve_gets_nothing(stop: str) -> None:
    core = scheduler(info())
    if stop == "draining":
        core.worker_draining("w1")
    else:
        core.engine_state("w1", EngineState(healthy=False))
    asked = request()
    core.submit(asked, "r", 0.0)
    assert granted(core.tick(0.0)) == []
    if stop == "draining":
        join(core, info())
    else:
        core.engine_state("w1", EngineState())
    assert granted(core.tick(0.0)) == [asked.key]


# A scheduler that starts amid running requests (P3).


def test_what_a_router_holds_is_charged_once_its_worker_has_confirmed_it() -> None:
    core = scheduler()
    held = request()
    core.claim(held, "r", "w1")
    core.worker_registered(info())
    core.worker_running("w1", [running_on(held.key, generated=4)])
    core.worker_reported("w1", 0.0)
    core.progress("w1", held.key, 5, prefilled=True)
    assert flow(core, "acme").service_tenths == 20
    assert worker(core).promised == 20


def test_a_router_that_speaks_after_the_worker_is_charged_from_then_on() -> None:
    core = scheduler()
    held = request()
    core.worker_registered(info())
    core.worker_running("w1", [running_on(held.key, generated=4)])
    core.worker_reported("w1", 0.0)
    core.progress("w1", held.key, 6, prefilled=True)
    core.claim(held, "r", "w1")
    core.progress("w1", held.key, 7, prefilled=True)
    assert flow(core, "acme").service_tenths == 20


def test_the_workers_report_is_final() -> None:
    core = scheduler()
    held = request()
    core.claim(held, "r", "w1")
    join(core, info())
    assert worker(core).promised == 0
    core.claim(held, "r", "w1")
    assert worker(core).promised == 0


@pytest.mark.parametrize("first", ["router", "worker"])
def test_an_entry_whose_grant_never_reached_its_router_is_withdrawn_and_granted_anew(first: str) -> None:
    core = scheduler()
    asked = request()
    if first == "router":
        core.submit(asked, "r", 0.0)
    core.worker_registered(info("w1", 20))
    core.worker_running("w1", [running_on(asked.key, started=False)])
    core.worker_reported("w1", 0.0)
    if first == "worker":
        core.submit(asked, "r", 0.0)
    decisions = core.tick(0.0)
    assert [withdrawal.key for withdrawal in decisions.withdrawals] == [asked.key]
    assert granted(decisions) == [asked.key]
    assert worker(core).promised == 20


def test_a_lost_router_session_drops_its_queue_and_leaves_its_grants_to_the_worker() -> None:
    core = scheduler(info("w1", 20))
    running, waiting, other = request(), request(), request("other")
    core.submit(running, "r/1", 0.0)
    core.tick(0.0)
    core.submit(waiting, "r/1", 0.0)
    core.submit(other, "r/2", 0.0)
    core.router_lost("r/1")
    assert worker(core).promised == 20
    core.entry_expired("w1", running.key)
    assert granted(core.tick(0.1)) == [other.key]
    assert granted(core.tick(0.2)) == []


def test_words_that_come_too_late_change_nothing() -> None:
    core = scheduler(info())
    gone = key()
    core.progress("w1", gone, 5, prefilled=True)
    run(core, gone)
    core.entry_expired("w1", gone)
    core.cancel(gone)
    core.decline(gone)
    assert core.tick(0.0).batches == ()
    assert worker(core).promised == 0
