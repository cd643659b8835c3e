"""What a run does, all of it decided by a seed: which requests, which of them their clients abandon, who is killed when.

"When" is counted in requests begun, not in seconds, so that a slow machine sees the same run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.worker.simulated_model import TEXT, VOCABULARY_TOKENS

ROUTERS = ("router-1", "router-2")
WORKERS = ("worker-1", "worker-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
SERVICES = ("quota", "metering", "valkey")
PROCESSES = (*ROUTERS, *WORKERS, *SCHEDULERS, *SERVICES)
KINDS = ("router", "worker", "scheduler", *SERVICES)
# Only who takes over comes there, so the leader has to die first.
TAKEOVER_POINTS = ("scheduler.after_lease", "scheduler.during_takeover")
TENANTS = {
    "gold-one": "enterprise",
    "gold-two": "premium",
    "silver-one": "standard",
    "silver-two": "standard",
    "bronze-one": "basic",
    "bronze-two": "basic",
}
ABORTED_SHARE = 0.3
# Requests that may begin while a disruption that is due has not happened yet, since what it needs is still restarting.
RUN_AHEAD = 40


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of one client.

    Attributes:
        seed: for the engine.
        router: the one to try first.
        leaves_after: the share of the undisturbed answer after which the client goes away; None to stay.
    """

    number: int
    tenant: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    ignore_eos: bool
    stop: tuple[str, ...]
    router: str
    leaves_after: float | None


@dataclass(frozen=True, slots=True)
class Disruption:
    """What happens once `at` requests have begun: a kill point is armed, or processes are killed together, or both.

    Attributes:
        names: the processes to kill; with a point, those that must die for it to be reached.
        point: the point to arm; empty for none.
    """

    at: int
    names: tuple[str, ...] = ()
    point: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of process that it strikes."""
        return frozenset(map(kind_of, self.names)) or frozenset({self.point.partition(".")[0]})


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Attributes:
        disruptions: in the order of `at`.
    """

    asks: tuple[Ask, ...]
    disruptions: tuple[Disruption, ...]

    @property
    def points(self) -> frozenset[str]:
        """The kill points that are to be tripped."""
        return frozenset(disruption.point for disruption in self.disruptions if disruption.point)


def kind_of(name: str) -> str:
    """Returns the kind of a process: router for router-2."""
    return name.rstrip("-0123456789")


def make_plan(seed: int, requests: int, kills: int, points: Sequence[str]) -> Plan:
    """Returns the run of a seed.

    Args:
        seed: decides everything else.
        requests: how many.
        kills: of each kind of process, those by kill points not counted; workers are struck twice as often, a router and a worker
            die together once, and so does everything.
        points: the kill points to trip.
    """
    draw = random.Random(seed)
    asks = tuple(_ask(draw, number) for number in range(requests))
    strikes = [Disruption(0, SCHEDULERS if point in TAKEOVER_POINTS else (), point) for point in points]
    strikes += [Disruption(0, (draw.choice(ROUTERS), draw.choice(WORKERS))), Disruption(0, PROCESSES)]
    strikes += [Disruption(0, (draw.choice(_members(kind)),)) for kind in KINDS for _ in range(kills)]
    strikes += [Disruption(0, (draw.choice(WORKERS),)) for _ in range(kills)]
    draw.shuffle(strikes)
    # Independent times, so that some fall together; none before the load is under way, and the last with load enough to come that
    # every kill point is still reached, however slowly a machine recovers from the one before.
    times = sorted(draw.uniform(0.03, 0.75) * requests for _ in strikes)
    disruptions = (Disruption(round(at), strike.names, strike.point) for at, strike in zip(times, strikes, strict=True))
    return Plan(asks, tuple(disruptions))


def _members(kind: str) -> list[str]:
    return [name for name in PROCESSES if kind_of(name) == kind]


def _ask(draw: random.Random, number: int) -> Ask:
    return Ask(
        number=number,
        tenant=draw.choice(list(TENANTS)),
        prompt=tuple(draw.randrange(100, VOCABULARY_TOKENS) for _ in range(draw.randint(4, 120))),
        max_tokens=draw.randint(60, 180),
        seed=draw.getrandbits(63),
        ignore_eos=draw.random() < 0.5,
        # Held back by the worker until it is decided, so a continuation has to take text over, too.
        stop=(_rare_phrase(draw),) if draw.random() < 0.2 else (),
        router=draw.choice(ROUTERS),
        leaves_after=draw.random() * 0.9 if draw.random() < ABORTED_SHARE else None,
    )


def _rare_phrase(draw: random.Random) -> str:
    """Returns words that answers often begin to say, and seldom say to the end."""
    words = [text for text in TEXT if text.startswith(" ") and len(text) > 5]
    return f"{draw.choice(('.', ','))}{draw.choice((' The', ' and'))}{draw.choice(words)}"
