"""A prompt goes where its prefix or its adapter is, and may overtake a little for it."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.prefixes import Prefixes
from forebay.scheduler.domain.request import AttemptKey, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import EngineState, RunningAttempt, WorkerInfo

from .builders import MODEL, grants, info, request, scheduler

BLOCK = 16
SLACK_TENTHS = 2_000


def core_with(*workers: WorkerInfo, near: int = 8) -> Scheduler:
    rules = PoolRules(
        room=RoomRules(alpha=1.0),
        eviction=EvictionRules(after_s=float("inf")),
        near=near,
        near_tenths=SLACK_TENTHS,
    )
    adapters = frozenset({(MODEL, "poet", "acme"), (MODEL, "clerk", "globex")})
    return scheduler(*workers, limits=Limits(pool=rules, adapters=adapters))


def prompt(tenant_id: str, *blocks: int, tokens: int = 64, **values: Any) -> Request:
    """A request whose blocks have keyed hashes, as routers make them: a tenant's are nobody else's."""
    hashes = tuple(hash((tenant_id, block)) for block in blocks)
    return request(tenant_id, prompt_tokens=tokens, prefix_hashes=hashes, prefix_block_tokens=BLOCK, **values)


def placed(core: Scheduler, *asked: Request) -> list[tuple[AttemptKey, str]]:
    """Submits all at once and returns who goes where, in the order drawn."""
    for one in asked:
        core.submit(one, "r", 0.0)
    return [(grant.request.key, grant.worker_id) for grant in grants(core.tick(0.0))]


@pytest.mark.parametrize("known", ["granted", "adopted"])
def test_no_more_adapters_run_on_a_worker_at_a_time_than_it_has_slots_for(known: str) -> None:
    core = core_with(info(max_adapters=1))
    poem = prompt("acme", adapter="poet")
    if known == "granted":
        assert placed(core, poem) == [(poem.key, "w1")]
    else:
        core.worker_lost("w1", 0.0)
        core.claim(poem, "r", "w1")
        core.worker_registered(info(max_adapters=1))
        core.worker_running("w1", [RunningAttempt(poem.key, "acme", 74, 0, started=True)])
        core.worker_reported("w1", 0.0)
    same, other, plain = prompt("acme", adapter="poet"), prompt("globex", adapter="clerk"), prompt("acme")
    # There is room for all, but the other adapter would wait in the engine; so the worker is kept for it.
    assert [key for key, _ in placed(core, same)] == [same.key]
    assert placed(core, other, plain) == []
    for ended in (poem, same):
        core.departure("w1", ended.key, generated_tokens=1, cached_tokens=0, started=True)
    assert [key for key, _ in placed(core)] == [other.key, plain.key]


def test_nobody_is_evicted_for_a_slot() -> None:
    rules = PoolRules(eviction=EvictionRules(after_s=0.0, more_s=0.0))
    adapters = frozenset({(MODEL, "poet", "acme"), (MODEL, "clerk", "globex")})
    core = scheduler(info(max_adapters=1), limits=Limits(pool=rules, adapters=adapters))
    poems = [prompt("acme", adapter="poet") for _ in range(10)]
    for key, _ in placed(core, *poems):
        core.progress("w1", key, 0, prefilled=True)
    core.submit(prompt("globex", adapter="clerk"), "r", 1.0)
    decisions = core.tick(2.0)
    assert (decisions.evictions, decisions.batches) == ((), ())


def test_a_hit_is_of_leading_blocks_only() -> None:
    prefixes = Prefixes(10)
    prefixes.granted([1, 2, 3])
    assert prefixes.hit_blocks([1, 2, 3, 4]) == 3
    assert prefixes.hit_blocks([1, 9, 3]) == 1
    assert prefixes.hit_blocks([9, 2, 3]) == 0


def test_what_was_granted_longest_ago_is_forgotten_and_of_a_prompt_its_end_first() -> None:
    prefixes = Prefixes(4)
    prefixes.granted([1, 2, 3])
    prefixes.granted([7, 8])
    assert prefixes.hit_blocks([1, 2, 3]) == 2
    prefixes.granted([1, 2])
    prefixes.granted([5, 6])
    assert (prefixes.hit_blocks([1, 2]), prefixes.hit_blocks([7, 8])) == (2, 0)


def test_a_prompt_goes_to_the_worker_that_has_its_prefix_though_another_is_emptier() -> None:
    core = core_with(info("w1"), info("w2"))
    ((_, first),) = placed(core, prompt("a", 1, 2, 3))
    ((_, second),) = placed(core, prompt("a", 1, 2, 9))
    ((_, other),) = placed(core, prompt("b", 1, 2, 3))
    assert second == first
    assert other != first  # the same text, but not the same prefix: it goes where there is more room


def test_a_prompt_goes_to_the_worker_that_has_its_adapter_loaded() -> None:
    core = core_with(*(info(name, max_adapters=2) for name in ("w1", "w2", "w3")))
    core.engine_state("w2", EngineState(adapters=("poet",)))
    assert [worker for _, worker in placed(core, *(request(adapter="poet") for _ in range(2)))] == ["w2", "w2"]


def order_of_two(ahead_tokens: int, near: int = 8) -> list[str]:
    """Returns in which order two tenants are served: "warm" has had so many tokens more, and its prefix is there."""
    core = core_with(info(), near=near)
    for key, _ in placed(core, prompt("warm", 1, 2, tokens=ahead_tokens), prompt("cold", 5, tokens=1)):
        core.departure("w1", key, generated_tokens=0, cached_tokens=0, started=True)
    again = [prompt("cold", 6), prompt("warm", 1, 2)]
    tenants = {one.key: one.tenant_id for one in again}
    return [tenants[key] for key, _ in placed(core, *again)]


def test_who_is_spared_computing_goes_first_if_it_is_a_little_ahead() -> None:
    assert order_of_two(ahead_tokens=150) == ["warm", "cold"]


def test_who_is_far_ahead_waits_in_spite_of_it() -> None:
    assert order_of_two(ahead_tokens=250) == ["cold", "warm"]


def test_only_so_many_are_looked_at() -> None:
    assert order_of_two(ahead_tokens=150, near=1) == ["cold", "warm"]
