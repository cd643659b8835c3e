"""Who gives way to one that has waited long enough, and to whom."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain.decisions import Decisions
from forebay.scheduler.domain.eviction import Budget, EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import AttemptKey
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import RunningAttempt

from .builders import flow, granted, info, request, scheduler

RULES = EvictionRules(after_s=1.0, more_s=0.0, margin=2.0)


def core_with(eviction: EvictionRules = RULES, kv_tokens: int = 1000) -> Scheduler:
    return scheduler(
        info(kv_tokens=kv_tokens), limits=Limits(pool=PoolRules(room=RoomRules(alpha=1.0), eviction=eviction))
    )


def fill(core: Scheduler, tenant_id: str, count: int, prompt_tokens: int = 99) -> list[AttemptKey]:
    """Has a tenant's requests granted and started, at time 0."""
    asked = [request(tenant_id, prompt_tokens=prompt_tokens, max_tokens=1) for _ in range(count)]
    for one in asked:
        core.submit(one, "r", 0.0)
    assert len(granted(core.tick(0.0))) == count
    for one in asked:
        core.progress("w1", one.key, 0, prefilled=True)
    core.tick(0.0)
    return [one.key for one in asked]


def wait(core: Scheduler, tenant_id: str, until: float, prompt_tokens: int = 99) -> tuple[AttemptKey, Decisions]:
    """Submits a request at time 0, lets it be found not to fit, and returns what is decided later."""
    asked = request(tenant_id, prompt_tokens=prompt_tokens, max_tokens=1)
    core.submit(asked, "r", 0.0)
    assert granted(core.tick(0.0)) == []
    return asked.key, again(core, until)


def again(core: Scheduler, now: float) -> Decisions:
    """Has the pool looked at once more."""
    core.submit(request("nobody", start_after_s=1e6), "r", now)  # it does not count, but makes the pool worth a look
    return core.tick(now)


def evicted(decisions: Decisions) -> list[AttemptKey]:
    return [eviction.key for eviction in decisions.evictions]


def test_the_fullest_tenants_newest_request_gives_way_and_its_room_is_promised_at_once() -> None:
    core = core_with()
    running = fill(core, "full", 10)
    waiting, decisions = wait(core, "empty", 1.0)
    assert evicted(decisions) == [running[-1]]
    assert granted(decisions) == [waiting]
    # It is told once, and is not asked for again.
    assert evicted(again(core, 50.0)) == []


def test_one_whose_worker_has_not_spoken_of_it_yet_is_let_come() -> None:
    core = core_with()
    asked = [request("full", prompt_tokens=99, max_tokens=1) for _ in range(10)]
    for one in asked:
        core.submit(one, "r", 0.0)
    assert len(granted(core.tick(0.0))) == 10
    _, decisions = wait(core, "empty", 1.0)
    assert evicted(decisions) == []
    core.progress("w1", asked[3].key, 0, prefilled=True)
    assert evicted(core.tick(1.0)) == [asked[3].key]


def test_it_must_have_waited_long_enough() -> None:
    core = core_with()
    fill(core, "full", 10)
    _, decisions = wait(core, "empty", 0.999)
    assert evicted(decisions) == []


def test_the_fuller_a_tenant_would_be_the_longer_it_waits() -> None:
    rules = EvictionRules(after_s=1.0, more_s=8.0)
    assert rules.patience_s(0.0) == 1.0
    assert rules.patience_s(0.5) == 2.0
    assert rules.patience_s(1.0) == 9.0


def test_who_gives_way_is_still_above_its_share_without_the_request() -> None:
    core = core_with()
    fill(core, "half", 5)
    fill(core, "other", 5)
    # Three tenants: each is owed a third, and has a half; without one of its requests it would have 400 of 333.
    _, decisions = wait(core, "third", 1.0)
    assert len(evicted(decisions)) == 1
    core = core_with()
    fill(core, "half", 2, prompt_tokens=249)
    fill(core, "other", 2, prompt_tokens=249)
    # Without one of its requests each would have 250 of 333.
    _, decisions = wait(core, "third", 1.0)
    assert evicted(decisions) == []


def test_who_gives_way_is_still_much_fuller_than_the_one_that_asks() -> None:
    core = core_with()
    fill(core, "asks", 3)
    fill(core, "full", 7)
    # Of 500 each, "asks" would have 400 and "full" 600, which is above its share but not twice as full.
    _, decisions = wait(core, "asks", 1.0)
    assert evicted(decisions) == []


def test_no_more_are_evicted_than_the_rules_say_and_none_if_that_is_too_few() -> None:
    core = core_with(EvictionRules(after_s=1.0, more_s=0.0, most=2))
    running = fill(core, "full", 10)
    _, decisions = wait(core, "empty", 1.0, prompt_tokens=199)
    assert set(evicted(decisions)) == set(running[-2:])
    core = core_with(EvictionRules(after_s=1.0, more_s=0.0, most=2))
    fill(core, "full", 10)
    _, decisions = wait(core, "empty", 1.0, prompt_tokens=299)
    assert evicted(decisions) == []


def test_an_eviction_that_was_lost_with_the_workers_session_can_be_asked_for_again() -> None:
    core = core_with()
    running = fill(core, "full", 10)
    asked, decisions = wait(core, "empty", 1.0)
    assert evicted(decisions) == [running[-1]]
    core.worker_lost("w1", 2.0)
    core.worker_registered(info())
    held = [RunningAttempt(key, "full", 100, 0, started=True) for key in running]
    core.worker_running("w1", [*held, RunningAttempt(asked, "empty", 100, 0, started=True)])
    core.worker_reported("w1", 2.0)
    core.departure("w1", asked, generated_tokens=0, cached_tokens=0, started=True)
    core.submit(request("empty", prompt_tokens=99, max_tokens=1), "r", 3.0)
    assert granted(core.tick(3.0)) == []
    assert evicted(again(core, 4.0)) == [running[-1]]


def test_nobody_is_evicted_for_one_that_waits_for_prompts_to_be_computed() -> None:
    limits = Limits(pool=PoolRules(room=RoomRules(alpha=1.0), eviction=RULES))
    core = scheduler(info(max_num_batched_tokens=100), limits=limits)
    for _ in range(3):
        fill(core, "full", 2)
    core.submit(request("long", prompt_tokens=150, max_tokens=1), "r", 0.0)
    assert len(granted(core.tick(0.0))) == 1
    # There is cache for it, but the prompts of two steps wait already.
    waiting, decisions = wait(core, "empty", 1.0)
    assert (evicted(decisions), granted(decisions)) == ([], [])
    (pool,) = core.pools
    long = next(key for key, entry in pool.workers["w1"].in_flight.items() if entry.unprefilled)
    core.progress("w1", long, 0, prefilled=True)
    assert granted(core.tick(1.0)) == [waiting]


def test_the_budget_is_earned_by_computing_and_spent_by_computing_again() -> None:
    budget = Budget(EvictionRules(budget=0.1, budget_tokens=100))
    assert not budget.spend(101)
    assert budget.spend(100)
    assert not budget.spend(1)
    budget.earn(50)
    assert not budget.spend(6)
    assert budget.spend(5)
    budget.earn(10_000)
    assert not budget.spend(101)


def test_without_budget_nobody_is_evicted() -> None:
    core = core_with(EvictionRules(after_s=1.0, more_s=0.0, budget_tokens=98))
    fill(core, "full", 10)
    _, decisions = wait(core, "empty", 1.0)
    assert evicted(decisions) == []


def test_an_evicted_request_is_charged_nothing_more_and_its_continuation_nothing_again() -> None:
    core = core_with()
    running = fill(core, "full", 10)
    wait(core, "empty", 1.0)
    before = flow(core, "full").service_tenths
    core.departure("w1", running[-1], generated_tokens=1, cached_tokens=0, started=True)
    assert flow(core, "full").service_tenths == before + 20
    again_key = AttemptKey(running[-1].request_id, 2)
    core.submit(request("full", key=again_key, prompt_tokens=100, max_tokens=1, delivered_tokens=1), "r", 1.0)
    for key in running[:2]:
        core.departure("w1", key, generated_tokens=0, cached_tokens=0, started=True)
    assert again_key in granted(core.tick(1.0))
    assert flow(core, "full").service_tenths == before + 20


def test_one_that_is_evicted_before_it_has_yielded_anything_is_charged_only_where_it_runs_again() -> None:
    core = core_with()
    running = fill(core, "full", 10)
    wait(core, "empty", 1.0)
    core.departure("w1", running[-1], generated_tokens=0, cached_tokens=0, started=True)
    assert flow(core, "full").service_tenths == 9 * 990


def test_no_more_are_evicted_from_a_worker_before_those_that_were_told_have_gone() -> None:
    core = core_with()
    running = fill(core, "full", 10)
    wait(core, "empty", 1.0)
    _, decisions = wait(core, "next", 3.0)
    assert evicted(decisions) == []
    core.departure("w1", running[-1], generated_tokens=0, cached_tokens=0, started=True)
    assert evicted(core.tick(3.0)) == [running[-2]]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 400)), min_size=5, max_size=30),
    st.floats(1.0, 3.0),
    st.integers(1, 4),
)
def test_nobody_falls_below_its_share_and_they_do_not_evict_each_other_in_turn(
    asked: list[tuple[str, int]], margin: float, most: int
) -> None:
    """Nothing ends but by eviction, so there must come an end to it."""
    rules = EvictionRules(after_s=0.0, more_s=0.0, margin=margin, most=most, budget_tokens=10**9)
    core = core_with(rules)
    sizes: dict[str, tuple[str, int]] = {}
    running: set[str] = set()
    for tenant_id, prompt_tokens in asked:
        one = request(tenant_id, prompt_tokens=prompt_tokens, max_tokens=1, queue_timeout_s=1e9)
        sizes[one.key.request_id] = tenant_id, prompt_tokens + 1
        core.submit(one, "r", 0.0)
    for moment in range(60):
        decisions = again(core, float(moment))
        running |= {key.request_id for key in granted(decisions)}
        running -= {key.request_id for key in evicted(decisions)}
        for key in evicted(decisions):
            tenant_id, size = sizes[key.request_id]
            held = sum(tokens for owner, tokens in map(sizes.__getitem__, running) if owner == tenant_id)
            assert held > 1000 / 3
            core.departure("w1", key, generated_tokens=0, cached_tokens=0, started=True)
            next_attempt = AttemptKey(key.request_id, key.attempt + 1)
            once_more = request(tenant_id, key=next_attempt, prompt_tokens=size - 1, max_tokens=1, queue_timeout_s=1e9)
            core.submit(once_more, "r", float(moment))
        if not decisions.evictions and not decisions.batches:
            return
    raise AssertionError("they go on evicting each other")
