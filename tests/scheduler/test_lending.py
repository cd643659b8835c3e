"""Dedicated pools whose idle workers serve the shared one."""

from __future__ import annotations

from typing import Any

from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import AttemptKey, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler

from .builders import granted, grants, info, request, scheduler

NEVER = EvictionRules(after_s=float("inf"))
ROOM = RoomRules(alpha=1.0, lent_share=0.5)


def core_with(*, lends: bool = True, shared: bool = True) -> Scheduler:
    pools = {"vip": PoolRules(room=ROOM, eviction=NEVER, lends=lends)}
    workers = [info("own", pool="vip"), *([info("shared")] if shared else [])]
    return scheduler(*workers, limits=Limits(pool=PoolRules(room=ROOM, eviction=NEVER), pools=pools))


def asked(count: int, tenant_id: str = "guest", **values: Any) -> list[Request]:
    return [request(tenant_id, prompt_tokens=99, max_tokens=1, **values) for _ in range(count)]


def placed(core: Scheduler, *requests: Request) -> dict[AttemptKey, str]:
    for one in requests:
        core.submit(one, "r", 0.0)
    return {grant.request.key: grant.worker_id for grant in grants(core.tick(0.0))}


def test_an_idle_worker_serves_the_shared_pool_up_to_the_lent_share() -> None:
    core = core_with()
    where = list(placed(core, *asked(20)).values())
    assert (where.count("shared"), where.count("own")) == (10, 5)


def test_a_pool_that_does_not_lend_keeps_its_workers_to_itself() -> None:
    core = core_with(lends=False)
    assert set(placed(core, *asked(20)).values()) == {"shared"}


def test_nothing_is_lent_the_other_way() -> None:
    core = core_with()
    assert list(placed(core, *asked(20, "owner", pool="vip")).values()) == ["own"] * 10


def test_the_owner_has_the_rest_of_a_lent_worker_at_once() -> None:
    core = core_with(shared=False)
    placed(core, *asked(20))
    owners = asked(5, "owner", pool="vip")
    assert placed(core, *owners) == dict.fromkeys([one.key for one in owners], "own")


def test_guests_are_evicted_for_the_owner_without_a_wait_and_the_newest_first() -> None:
    core = core_with(shared=False)
    guests = list(placed(core, *asked(5)))
    for key in guests:
        core.progress("own", key, 0, prefilled=True)
    placed(core, *asked(5, "owner", pool="vip"))
    (one,) = asked(1, "owner", pool="vip")
    core.submit(one, "r", 0.0)
    decisions = core.tick(0.0)
    assert [eviction.key for eviction in decisions.evictions] == [guests[-1]]
    assert granted(decisions) == [one.key]


def test_guests_get_no_more_of_it_while_the_owner_waits() -> None:
    core = core_with(shared=False)
    placed(core, *asked(20, "owner", pool="vip"))
    guests = asked(2)
    assert placed(core, *guests) == {}
    (pool,) = [pool for pool in core.pools if pool.name == "vip"]
    for key in list(pool.workers["own"].in_flight):
        core.departure("own", key, generated_tokens=0, cached_tokens=0, started=True)
    where = placed(core)
    assert not {one.key for one in guests} & set(where)
    for key in where:
        core.departure("own", key, generated_tokens=0, cached_tokens=0, started=True)
    # Nobody waits there any more.
    assert placed(core) == dict.fromkeys([one.key for one in guests], "own")


def test_guests_are_charged_in_their_own_pool() -> None:
    core = core_with(shared=False)
    placed(core, *asked(3))
    own = {pool.name: pool.flows.root.service_tenths for pool in core.pools}
    assert own == {"": 3 * 990, "vip": 0}
