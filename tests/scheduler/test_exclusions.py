"""To exclude a worker is a preference with an end: where a worker with room is, a request that excludes it is served in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import PoolRules
from forebay.scheduler.domain.queue import EXCLUDED_S, MAX_EXCLUDED_S
from forebay.scheduler.domain.request import AttemptKey, Request
from forebay.scheduler.domain.room import RoomRules
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import EngineState

from .builders import WHOLE, granted, grants, info, join, key, request, scheduler

NAMES = ("w1", "w2", "w3")


def broken_on(*workers: str, attempt: int = 2, **values: object) -> Request:
    """A request whose attempt before broke on each of the workers."""
    return request(key=key(attempt), excluded_workers=frozenset(workers), **values)


def test_another_worker_is_taken_at_once() -> None:
    core = scheduler(info("w1"), info("w2"))
    core.submit(broken_on("w1"), "r", 0.0)
    assert [grant.worker_id for grant in grants(core.tick(0.0))] == ["w2"]


@pytest.mark.parametrize(("attempt", "after_s"), [(2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (1 << 31, 8.0)])
def test_the_only_worker_is_taken_after_a_while_and_later_by_each_attempt(attempt: int, after_s: float) -> None:
    core = scheduler(info("w1"))
    asked = broken_on("w1", attempt=attempt)
    core.submit(asked, "r", 10.0)
    for now in (10.0, 10.0 + 0.9 * after_s):
        assert granted(core.tick(now)) == []
    assert core.due(10.0 + after_s)
    assert granted(core.tick(10.0 + after_s)) == [asked.key]


def test_it_is_taken_when_the_others_have_no_room() -> None:
    core = scheduler(info("w1", 20), info("w2", 20))
    first, second = request(), request()
    core.submit(first, "r", 0.0)
    core.submit(second, "r", 0.0)
    where = {grant.request.key: grant.worker_id for grant in grants(core.tick(0.0))}
    asked = broken_on(where[first.key])
    core.departure(where[first.key], first.key, generated_tokens=1, cached_tokens=0, started=True)
    core.submit(asked, "r", 1.0)
    assert granted(core.tick(1.0)) == []
    assert granted(core.tick(1.0 + EXCLUDED_S)) == [asked.key]


@pytest.mark.parametrize("noticed", [True, False], ids=["after its session ended", "before that was noticed"])
def test_a_worker_that_has_come_back_in_the_same_life_is_no_longer_excluded(noticed: bool) -> None:
    core = scheduler(info("w1"))
    asked = broken_on("w1")
    core.submit(asked, "r", 0.0)
    if noticed:
        core.worker_lost("w1", 0.1)
    assert granted(core.tick(0.1)) == []
    join(core, info("w1"), now=0.2)
    assert granted(core.tick(0.2)) == [asked.key]


def test_a_request_that_is_held_back_and_excludes_is_served_in_time() -> None:
    core = scheduler(info("w1"))
    asked = broken_on("w1", attempt=5, start_after_s=3.0)
    core.submit(asked, "r", 0.0)
    assert granted(core.tick(3.0)) == []
    assert granted(core.tick(8.0)) == [asked.key]


def test_an_exclusion_does_not_outlive_the_wait() -> None:
    core = scheduler(info("w1"))
    asked = broken_on("w1", attempt=5, remaining_s=5.0)
    core.submit(asked, "r", 0.0)
    (rejection,) = core.tick(5.0).rejections
    assert (rejection.key, rejection.error.reason) == (asked.key, "DEADLINE_EXCEEDED")


def test_a_guest_that_is_too_large_to_lend_for_is_looked_at_again_when_shorter_answers_are_expected() -> None:
    pools = {"vip": replace(WHOLE, lends=True, room=RoomRules(alpha=1.0, lent_share=0.5))}
    core = scheduler(info("own", pool="vip"), limits=Limits(pool=PoolRules(room=RoomRules(alpha=1.0)), pools=pools))
    large = request("guest", prompt_tokens=100, max_tokens=450)
    core.submit(large, "r", 0.0)
    assert granted(core.tick(0.0)) == []
    for _ in range(16):  # answers that are short
        short = request("guest", prompt_tokens=1, max_tokens=20)
        core.submit(short, "r", 0.0)
        assert granted(core.tick(0.0)) == [short.key]
        core.departure("own", short.key, generated_tokens=4, cached_tokens=0, started=True)
    assert granted(core.tick(0.0)) == [large.key]


def test_a_successor_whose_clock_was_put_back_is_taken_once_the_later_life_is_gone() -> None:
    core = scheduler(info("w1", incarnation=9))
    core.worker_lost("w1", 0.0)
    asked = request()
    core.submit(asked, "r", 0.0)
    join(core, info("w1", incarnation=3), now=1.0)
    assert [grant.worker_incarnation for grant in grants(core.tick(1.0))] == [3]


class World:
    """Workers with room for all, which come and go, and requests whose attempts break."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core: Scheduler = scheduler(*(info(name) for name in NAMES))
        self.lives = dict.fromkeys(NAMES, 1)
        self.attached = dict.fromkeys(NAMES, True)
        self.running: dict[AttemptKey, str] = {}
        self.waiting: dict[AttemptKey, Request] = {}

    def tick(self) -> None:
        for grant in grants(self.core.tick(self.now)):
            assert self.attached[grant.worker_id]
            del self.waiting[grant.request.key]
            self.running[grant.request.key] = grant.worker_id

    def submit(self, attempt: int, *excluded: str) -> None:
        asked = broken_on(*excluded, attempt=attempt)
        self.waiting[asked.key] = asked
        self.core.submit(asked, "r", self.now)

    def act(self, what: str, worker: str, attempt: int) -> None:
        match what:
            case "submit":
                self.submit(attempt, worker)
            case "submit, excluding all":
                self.submit(attempt, *NAMES)
            case "break":
                for broken, where in list(self.running.items()):
                    if where == worker:
                        del self.running[broken]
                        if self.attached[worker]:
                            self.core.departure(worker, broken, generated_tokens=1, cached_tokens=0, started=True)
                        self.core.cancel(broken)
                        self.submit(attempt, worker)
            case "pause" if self.attached[worker]:
                self.attached[worker] = False
                self.core.worker_lost(worker, self.now)
            case "wake" | "restart":
                self.lives[worker] += what == "restart"
                self.attached[worker] = True
                self.running = {key: where for key, where in self.running.items() if where != worker}
                join(self.core, info(worker, incarnation=self.lives[worker]), self.now)
            case "fall ill" | "recover" if self.attached[worker]:
                self.core.engine_state(worker, EngineState(healthy=what == "recover"))


ACTIONS = ("submit", "submit, excluding all", "break", "pause", "wake", "restart", "fall ill", "recover")


@settings(max_examples=60, deadline=None)
@given(
    story=st.lists(
        st.tuples(
            st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.integers(2, 9), st.sampled_from((0.0, 0.3, 3.0))
        ),
        max_size=25,
    ),
    survivor=st.sampled_from(NAMES),
)
def test_where_any_worker_with_room_is_every_request_is_granted_in_time(
    story: list[tuple[str, str, int, float]], survivor: str
) -> None:
    world = World()
    for what, worker, attempt, pause in story:
        world.act(what, worker, attempt)
        world.now += pause
        world.tick()
    if not world.attached[survivor]:
        world.act("wake", survivor, 2)
    world.act("recover", survivor, 2)
    world.tick()
    world.now += MAX_EXCLUDED_S
    world.tick()
    assert world.waiting == {}
