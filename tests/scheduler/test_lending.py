"""Dedicated pools whose idle workers serve the shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.request import AttemptKey, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import RunningAttempt

from .builders import granted, grants, info, join, request, scheduler

NEVER = EvictionRules(after_s=float("inf"))
ROOM = RoomRules(alpha=1.0, lent_share=0.5)


def core_with(
    *, lends: bool = True, shared: bool = True, room: RoomRules = ROOM, eviction: EvictionRules = NEVER
) -> Scheduler:
    pools = {"vip": PoolRules(room=room, eviction=eviction, lends=lends)}
    workers = [info("own", pool="vip"), *([info("shared")] if shared else [])]
    return scheduler(*workers, limits=Limits(pool=PoolRules(room=room, eviction=eviction), pools=pools))


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


@pytest.mark.parametrize(("lent_share", "tokens", "where"), [(0.5, 500, "own"), (0.5, 501, None), (0.0, 1, None)])
def test_a_guest_that_is_larger_than_the_lent_share_has_no_place_on_an_idle_worker_either(
    lent_share: float, tokens: int, where: str | None
) -> None:
    core = core_with(shared=False, room=replace(ROOM, lent_share=lent_share))
    guest = request("guest", prompt_tokens=tokens - 1, max_tokens=1)
    assert placed(core, guest).get(guest.key) == where


def test_a_guest_that_makes_room_for_itself_among_guests_stays_within_the_lent_share() -> None:
    core = core_with(shared=False, room=replace(ROOM, lent_share=0.8), eviction=EvictionRules(after_s=1.0, more_s=0.0))
    for key in placed(core, *asked(8, "full")):
        core.progress("own", key, 0, prefilled=True)
    large = request("empty", prompt_tokens=199, max_tokens=1)
    assert placed(core, large) == {}
    core.progress("own", key, 1, prefilled=True)
    decisions = core.tick(1.0)
    assert granted(decisions) == [large.key]
    assert len(decisions.evictions) == 2


@pytest.mark.parametrize("first", ["router", "worker"])
def test_a_guest_is_one_under_the_next_leader_too(first: str) -> None:
    core = scheduler(limits=Limits(pools={"vip": PoolRules(lends=True)}))
    guest = request("guest")
    if first == "router":
        core.claim(guest, "r", "own")
    core.worker_registered(info("own", pool="vip"))
    core.worker_running("own", [RunningAttempt(guest.key, "guest", 20, 4, started=True)])
    core.worker_reported("own", 0.0)
    if first == "worker":
        core.claim(guest, "r", "own")
    shared, vip = core.pools
    assert vip.workers["own"].lent == 20
    core.progress("own", guest.key, 5, prefilled=True)
    assert (shared.flows.root.service_tenths, vip.flows.root.service_tenths) == (20, 0)
    core.departure("own", guest.key, generated_tokens=5, cached_tokens=0, started=True)
    core.tick(0.0)
    assert (vip.workers["own"].lent, core.pools) == (0, [vip])


def test_a_pool_that_is_gone_lends_nothing_any_more() -> None:
    core = core_with()
    (shared,) = [pool for pool in core.pools if not pool.name]
    assert [pool.name for pool in shared.lenders] == ["vip"]
    core.worker_lost("own", 0.0)
    core.tick(1e6)
    assert shared.lenders == []


def test_who_waits_for_lent_room_is_not_told_that_there_is_no_worker() -> None:
    core = core_with(shared=False)
    assert len(placed(core, *asked(6))) == 5
    (rejection,) = core.tick(30.0).rejections
    assert "no room" in rejection.error.message


def test_guests_are_evicted_for_the_owner_whatever_is_to_be_computed_again() -> None:
    spent = EvictionRules(after_s=float("inf"), budget_tokens=0)
    rules = PoolRules(room=RoomRules(alpha=1.0, lent_share=1.0), eviction=spent, lends=True)
    core = scheduler(info("own", pool="vip"), limits=Limits(pools={"vip": rules}))
    (guest,) = placed(core, request("guest", prompt_tokens=899, max_tokens=1))
    core.progress("own", guest, 0, prefilled=True)
    core.submit(request("owner", prompt_tokens=499, max_tokens=1, pool="vip"), "r", 0.0)
    assert [eviction.key for eviction in core.tick(0.0).evictions] == [guest]


def test_guests_get_no_more_of_it_while_the_owner_waits() -> None:
    core = core_with(shared=False)
    owners = placed(core, *asked(5, "owner", pool="vip"))
    large = request("owner", prompt_tokens=799, max_tokens=1, pool="vip")
    (guest,) = asked(1)
    # There is room for the guest, and not for the owner's next.
    assert placed(core, large, guest) == {}
    for key in owners:
        core.departure("own", key, generated_tokens=0, cached_tokens=0, started=True)
    # Nobody waits there any more.
    assert placed(core) == {large.key: "own", guest.key: "own"}


def test_guests_are_charged_in_their_own_pool() -> None:
    core = core_with(shared=False)
    placed(core, *asked(3))
    own = {pool.name: pool.flows.root.service_tenths for pool in core.pools}
    assert own == {"": 3 * 990, "vip": 0}


def test_one_that_only_a_lent_worker_can_run_has_its_turn_when_the_owner_is_done() -> None:
    core = core_with()
    owners = placed(core, *asked(11, "owner", pool="vip"))
    (guest,) = asked(1, excluded_workers=frozenset({"shared"}))
    assert placed(core, guest) == {}
    for key in owners:
        core.departure("own", key, generated_tokens=0, cached_tokens=0, started=True)
    assert placed(core)[guest.key] == "own"


def test_one_that_no_worker_could_run_is_looked_at_again_when_a_lent_one_comes() -> None:
    pools = {"vip": PoolRules(room=ROOM, eviction=NEVER, lends=True)}
    core = scheduler(info("shared"), limits=Limits(pool=PoolRules(room=ROOM, eviction=NEVER), pools=pools))
    (guest,) = asked(1, excluded_workers=frozenset({"shared"}))
    assert placed(core, guest) == {}
    join(core, info("own", pool="vip"))
    assert placed(core) == {guest.key: "own"}
