"""How much of a worker may be spoken for: alpha, those it favours, and the caps of tenants."""

from __future__ import annotations

import pytest

from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.room import RoomRules, Strain
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import EngineState

from .builders import granted, grants, info, join, request, scheduler

RULES = RoomRules(alpha=0.9, lowest_alpha=0.5, preemption_cost=0.1, recovery_per_s=0.01)


def core_with(room: RoomRules, **worker: int) -> Scheduler:
    rules = PoolRules(room=room, eviction=EvictionRules(after_s=float("inf")))
    return scheduler(info(**worker), limits=Limits(pool=rules))


def test_preemptions_lower_alpha_and_time_brings_it_back() -> None:
    strain = Strain(RULES)
    assert strain.lowered_by(50.0) == 0
    strain.preempted(2, 100.0)
    assert strain.lowered_by(100.0) == pytest.approx(0.2)
    assert strain.lowered_by(110.0) == pytest.approx(0.1)
    strain.preempted(1, 110.0)
    assert strain.lowered_by(110.0) == pytest.approx(0.2)
    assert strain.lowered_by(130.0) == 0


def test_alpha_falls_to_its_lowest_and_no_further() -> None:
    strain = Strain(RULES)
    strain.preempted(100, 0.0)
    assert strain.lowered_by(0.0) == pytest.approx(0.4)
    assert strain.lowered_by(20.0) == pytest.approx(0.2)


def test_a_worker_whose_engine_preempts_is_given_less_for_a_while() -> None:
    core = core_with(RULES, kv_tokens=1000)
    core.engine_state("w1", EngineState(preemptions=1000))  # whenever these were
    core.engine_state("w1", EngineState(preemptions=1004))
    core.engine_state("w1", EngineState(preemptions=1004))  # these are the same four
    for _ in range(10):
        core.submit(request(prompt_tokens=99, max_tokens=1), "r", 0.0)
    assert len(granted(core.tick(0.0))) == 5  # alpha is 0.9 - 0.4
    core.engine_state("w1", EngineState(preemptions=1004))
    core.submit(request(prompt_tokens=99, max_tokens=1), "r", 20.0)
    assert len(granted(core.tick(20.0))) == 2  # and now 0.7


def test_a_session_that_broke_makes_no_preemption_count_twice() -> None:
    core = core_with(RULES, kv_tokens=1000)
    core.engine_state("w1", EngineState(preemptions=1000))
    core.worker_lost("w1", 0.0)
    join(core, info(kv_tokens=1000))
    core.engine_state("w1", EngineState(preemptions=1001))
    for _ in range(10):
        core.submit(request(prompt_tokens=99, max_tokens=1), "r", 0.0)
    assert len(granted(core.tick(0.0))) == 8  # alpha is 0.9 - 0.1


def test_a_tenant_that_holds_little_may_fill_what_others_may_not() -> None:
    core = core_with(RoomRules(alpha=0.8, favoured_alpha=1.0, favoured_below=0.5), kv_tokens=1000)
    for _ in range(10):
        core.submit(request("much", prompt_tokens=99, max_tokens=1), "r", 0.0)
    running = granted(core.tick(0.0))
    assert len(running) == 8
    little = [request("little", prompt_tokens=10, max_tokens=90) for _ in range(3)]
    for asked in little:
        core.submit(asked, "r", 0.0)
    for attempt in running:
        core.progress("w1", attempt, 1, prefilled=True)
    # The neediest, and it may come to half of its half of the cache, which is 250 tokens.
    assert granted(core.tick(0.0)) == [asked.key for asked in little[:2]]


@pytest.mark.parametrize("rules", [RoomRules(alpha=1.0, tenant_in_flight=3), RoomRules(alpha=1.0, tenant_kv_share=0.3)])
def test_a_cap_holds_only_while_others_wait(rules: RoomRules) -> None:
    core = core_with(rules, kv_tokens=1000)
    for _ in range(20):
        core.submit(request("alone", prompt_tokens=99, max_tokens=1), "r", 0.0)
    assert len(granted(core.tick(0.0))) == 10
    core = core_with(rules, kv_tokens=1000, max_num_seqs=8)
    for tenant_id in ("a", "b"):
        for _ in range(20):
            core.submit(request(tenant_id, prompt_tokens=99, max_tokens=1), "r", 0.0)
    # Each has three, and would have four without a cap.
    assert len(granted(core.tick(0.0))) == 6


def test_a_cap_is_on_all_keys_of_a_tenant() -> None:
    core = core_with(RoomRules(alpha=1.0, tenant_in_flight=2), kv_tokens=1000)
    for key_id in ("one", "two"):
        core.submit(request("keys", prompt_tokens=1, max_tokens=1, key_id=key_id), "r", 0.0)
    assert len(granted(core.tick(0.0))) == 2
    other = [request("other", prompt_tokens=300, max_tokens=1) for _ in range(2)]
    for asked in other:
        core.submit(asked, "r", 0.0)
    for key_id in ("one", "two"):
        core.submit(request("keys", prompt_tokens=1, max_tokens=1, key_id=key_id), "r", 0.0)
    assert granted(core.tick(0.0))[:2] == [asked.key for asked in other]


def test_what_waits_at_its_cap_holds_up_nobody_however_much_it_is() -> None:
    core = core_with(RoomRules(alpha=1.0, tenant_in_flight=1), kv_tokens=1000)
    held, other = request("keys"), request("other", prompt_tokens=100)
    for asked in (held, *(request(f"t{number}") for number in range(20)), other):
        core.submit(asked, "r", 0.0)
    assert len(granted(core.tick(0.0))) == 22
    core.departure("w1", other.key, generated_tokens=1, cached_tokens=0, started=True)
    for number in range(20):
        core.submit(request("keys", key_id=str(number)), "r", 0.0)
        core.submit(request(f"t{number}"), "r", 0.0)
    again = request("other")
    core.submit(again, "r", 0.0)
    # It has had the most service, and all that are owed more have what they may have.
    assert granted(core.tick(0.0)) == [again.key]
    core.departure("w1", held.key, generated_tokens=1, cached_tokens=0, started=True)
    assert [grant.request.tenant_id for grant in grants(core.tick(0.0))] == ["keys"]


def test_a_cap_ends_with_the_draw_in_which_the_last_of_the_others_is_served() -> None:
    core = core_with(RoomRules(alpha=1.0, tenant_in_flight=1), kv_tokens=1000)
    before = request("one", prompt_tokens=100)
    for asked in (request("many"), before):
        core.submit(asked, "r", 0.0)
    assert len(granted(core.tick(0.0))) == 2
    core.departure("w1", before.key, generated_tokens=1, cached_tokens=0, started=True)
    for tenant_id in ("many", "one", "many"):
        core.submit(request(tenant_id), "r", 0.0)
    assert [grant.request.tenant_id for grant in grants(core.tick(0.0))] == ["one", "many", "many"]


def test_who_is_at_its_cap_is_not_served_for_a_prefix_hit_either() -> None:
    core = core_with(RoomRules(alpha=1.0, tenant_in_flight=2), kv_tokens=1000)
    hit = {"prefix_hashes": (1, 2, 3), "prefix_block_tokens": 16, "prompt_tokens": 60}
    for _ in range(3):
        core.submit(request("capped", **hit), "r", 0.0)
    others = [request("other", prefix_hashes=(9,), prefix_block_tokens=16) for _ in range(2)]
    for asked in others:
        core.submit(asked, "r", 0.0)
    drawn = granted(core.tick(0.0))
    # Without the cap "capped" would have all three before "other" has any; without others waiting it may have the third.
    assert set(drawn[2:4]) == {asked.key for asked in others}
