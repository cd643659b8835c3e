"""Whoever dies, is cut off, comes back or is slow: what is admitted without the counters never makes more than the whole."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.quota.domain.shares import WINDOW_S, Shares

LEASE_S = 100.0


def settled(shares: Shares, *routers: str, now: float = 0.0) -> dict[str, int]:
    """Tells each router in turn until nothing changes any more, each acknowledging at once; returns their parts."""
    held = dict.fromkeys(routers, -1)
    while True:
        before = dict(held)
        for router in routers:
            held[router] = shares.offer(router, now)
            shares.tell(router, held[router])
            shares.acknowledge(router, held[router], None, now)
        if held == before:
            return held


def test_routers_have_equal_parts() -> None:
    shares = Shares(LEASE_S, {}, 0.0)
    shares.join("a", 0, None, 0.0)
    assert settled(shares, "a") == {"a": 1}
    shares.join("b", 0, None, 0.0)
    assert shares.offer("b", 0.0) == 0, "the other has all of it until it has acknowledged less"
    assert settled(shares, "a", "b") == {"a": 2, "b": 2}


def test_a_router_that_is_gone_keeps_its_part_for_its_time() -> None:
    shares = Shares(LEASE_S, {}, 0.0)
    shares.join("a", 0, None, 0.0)
    shares.join("b", 0, None, 0.0)
    settled(shares, "a", "b")
    shares.leave("b")
    assert settled(shares, "a", now=LEASE_S + WINDOW_S - 1) == {"a": 2}
    assert settled(shares, "a", now=LEASE_S + WINDOW_S) == {"a": 1}


def test_quota_has_what_routers_do_not_have_and_a_minute_later_they_have_it_again() -> None:
    shares = Shares(LEASE_S, {}, 0.0)
    shares.join("a", 0, None, 0.0)
    settled(shares, "a")
    shares.away = True
    assert shares.claim(0.0) == 0
    assert settled(shares, "a") == {"a": 0}
    assert shares.claim(1.0) == 1
    shares.away = False
    assert settled(shares, "a", now=WINDOW_S) == {"a": 0}
    assert settled(shares, "a", now=1 + WINDOW_S) == {"a": 1}


def test_a_router_that_has_just_admitted_keeps_its_part_for_a_minute() -> None:
    shares = Shares(LEASE_S, {}, 0.0)
    shares.join("a", 1, 20.0, 0.0)
    shares.away = True
    assert settled(shares, "a") == {"a": 0}
    assert shares.claim(0.0) == 0
    settled(shares, "a", now=WINDOW_S - 20)
    assert shares.claim(WINDOW_S - 20) == 1


def test_the_next_life_counts_what_was_given_out() -> None:
    shares = Shares(LEASE_S, {"a": 2}, 0.0)
    shares.join("b", 0, None, 0.0)
    assert settled(shares, "b") == {"b": 2}
    assert shares.parts() == {"a": 2, "b": 2}


@dataclass
class Router:
    """A router as the contract has it: its time runs from its last word before what it was told."""

    parts: int = 0
    until: float = 0.0
    spoke_at: float = 0.0
    spent_at: float | None = None
    open: bool = False
    waiting: bool = False
    told: list[int] = field(default_factory=list)
    said: list[tuple[int, float | None]] = field(default_factory=list)


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.shares = Shares(LEASE_S, {}, 0.0)
        self.kept: dict[str, int] = {}
        self.routers = [Router() for _ in range(3)]
        self.spent: list[tuple[float, str, Fraction]] = []

    def step(self, what: str, number: int) -> None:
        router, name = self.routers[number], str(number)
        ago = None if router.spent_at is None else self.now - router.spent_at
        if what == "wait":
            self.now += (3.0, 12.0, 70.0)[number]
        elif what == "join" and not router.open:
            router.open, router.waiting, router.spoke_at = True, False, self.now
            router.told, router.said = [], []
            held = router.parts if self.now < router.until else 0
            self.shares.join(name, held, ago, self.now)
        elif what == "leave" and router.open:
            self.shares.leave(name)
            router.open = False  # quota knows; what is on the way still reaches the router
        elif what == "tell" and router.open and not router.waiting:
            parts = self.shares.offer(name, self.now)
            self.shares.tell(name, parts)
            self.kept = self.shares.parts()
            router.waiting = True
            router.told.append(parts)
        elif what == "take" and router.told:
            router.parts, router.until = router.told.pop(), router.spoke_at + LEASE_S
            router.spoke_at = self.now
            router.said = [(router.parts, ago)]
        elif what == "hear" and router.open and router.said:
            parts, then = router.said.pop()
            router.waiting = False
            # It took so long to come: the ago of then is more by now, and quota believes the message.
            self.shares.acknowledge(name, parts, then, self.now)
        elif what == "spend" and router.parts and self.now < router.until:
            router.spent_at = self.now
            self.spend(name, Fraction(1, router.parts))
        elif what == "away":
            self.shares.away = True
        elif what == "back":
            self.shares.away = False
        elif what == "claim" and self.shares.away:
            part = self.shares.claim(self.now)
            self.kept = self.shares.parts()
            self.spend("quota", part)
        elif what == "die":
            self.shares = Shares(LEASE_S, self.kept, self.now)
            for each in self.routers:
                each.open = False
        elif what == "restart":
            router.parts, router.told, router.said = 0, [], []
            if router.open:
                self.shares.leave(name)
                router.open = False

    def spend(self, who: str, part: Fraction) -> None:
        if part:
            self.spent.append((self.now, who, part))
        self.spent = [event for event in self.spent if self.now - event[0] < 60]
        largest: dict[str, Fraction] = {}
        for _, holder, spent in self.spent:
            largest[holder] = max(largest.get(holder, Fraction(0)), spent)
        assert sum(largest.values()) <= 1, largest


# What becomes more likely by standing here more often; an exchange may break off after each of its steps.
OPERATIONS = (
    *[["join"]] * 4, *[["tell", "take", "hear"]] * 8, ["tell", "take"], ["tell"], ["take"], *[["take", "hear"]] * 2,
    *[["spend"]] * 6, *[["wait"]] * 3, ["leave"], *[["away"]], *[["back"]] * 2, *[["claim"]] * 2, ["die"], ["restart"],
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers())
def test_no_history_spends_more_than_the_whole_in_a_minute(seed: int) -> None:
    world, chance = World(), random.Random(seed)
    for _ in range(200):
        number = chance.randrange(3)
        for what in chance.choice(OPERATIONS):
            world.step(what, number)
