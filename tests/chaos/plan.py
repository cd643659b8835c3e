"""What a run does, all of it decided by a seed: which requests, which of them their clients abandon, what is struck when.

"When" is counted in requests begun, not in seconds, so that a slow machine sees the same run.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from forebay.worker.simulated_model import TEXT, VOCABULARY_TOKENS

ROUTERS = ("router-1", "router-2")
WORKERS = ("worker-1", "worker-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
SERVICES = ("quota", "metering", "valkey")
PROCESSES = (*ROUTERS, *WORKERS, *SCHEDULERS, *SERVICES)
KINDS = ("router", "worker", "scheduler", *SERVICES)
# What keeps the processes of a mesh on one machine. The guardian watches over the launcher.
KEEPERS = ("launcher", "guardian")
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
# Redis loses their keys, after which they are refused for a minute: they ask half as often as others.
UNLUCKY = ("bronze-one", "bronze-two")
ABORTED_SHARE = 0.3
# Clients that give their call less time than many an answer takes, and the time that all others give.
HURRIED_SHARE = 0.05
PATIENT_S = 150.0
# GPU time costs something, of which only a worker knows, and cached tokens less than others: a budget has to follow the ledger.
NANO_USD_PER_MILLION = {
    "prompt_tokens": 10_000_000,
    "cached_tokens": 1_000_000,
    "completion_tokens": 30_000_000,
    "gpu_seconds": 10**13,
    "requests": 7_000_000_000,
}
# So that what dead routers held is settled while one waits for it.
LEASE_S = 3.0
# Longer than a scheduler bears that its event loop hangs, and any lease its holder; than any connection bears a peer that hangs.
LONG_PAUSE_S = 12.0
LOST_PAUSE_S = 25.0
# The parts of a tenant's state in Redis, and what all tenants share there. A pattern, where a name ends in what the run decides.
TENANT_KEYS = ("reservations", "due", "settled", "counters")
SHARED_KEYS = ("forebay:leader:*", "forebay:safety", "forebay:usage_cursor")
# Requests that may begin while a disruption that is due has not happened yet, since what it needs is still restarting.
RUN_AHEAD = 40
# Requests that begin no earlier than a disruption that is left.
KEPT_FOR_EACH = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of one client.

    Attributes:
        seed: for the engine.
        router: the one to try first.
        leaves_after: the share of the undisturbed answer after which the client goes away; None to stay.
        deadline_s: how long each of its calls may take.
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
    deadline_s: float


class Strike(enum.Enum):
    """What a disruption does; the values are the names in the figures."""

    KILL = "kills"  # kill -9, or a kill point
    PAUSE = "pauses"  # SIGSTOP, and SIGCONT after a time
    CLOCK = "clock_steps"  # the wall clock is set forward or back, and right again after a time
    FULL_DISK = "full_disks"  # the disk of the whole mesh is full for a time
    FILE_SIZE = "file_size_limits"  # a process can make no file longer for a time
    LOST_KEY = "keys_lost"  # Redis evicts a key


@dataclass(frozen=True, slots=True)
class Disruption:
    """What happens once `at` requests have begun.

    Attributes:
        names: the processes that are struck together; with a point, those that must die for it to be reached.
        point: the kill point to arm; empty for none.
        strike: what happens to them.
        seconds: for how long it lasts.
        ahead_s: of a clock: by how much it is ahead for that time; negative for behind.
        ends_in_death: of a clock: whether its processes are killed at the end. Their successors have the right time, as after a
            failover to a machine whose clock is right.
        key: of a lost key: its name, or a pattern.
    """

    at: int
    names: tuple[str, ...] = ()
    point: str = ""
    strike: Strike = Strike.KILL
    seconds: float = 0.0
    ahead_s: float = 0.0
    ends_in_death: bool = False
    key: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of process that it strikes, each of which has to be whole first."""
        if self.point and not self.names:
            return frozenset({self.point.partition(".")[0]})
        return frozenset(map(kind_of, self.names)) - set(KEEPERS)

    @property
    def unsettles_scheduling(self) -> bool:
        """Whether it strikes Redis or a scheduler."""
        return self.strike is Strike.FULL_DISK or not self.kinds.isdisjoint({"scheduler", "valkey"})

    def __str__(self) -> str:
        """Returns what happens, in a few words."""
        what = {
            Strike.KILL: f"{self.point or 'kill -9'}",
            Strike.PAUSE: f"a pause of {self.seconds:g} s",
            Strike.CLOCK: f"a clock {self.ahead_s:+g} s for {self.seconds:g} s{', then kill -9' * self.ends_in_death}",
            Strike.FULL_DISK: f"a full disk for {self.seconds:g} s",
            Strike.FILE_SIZE: f"no longer files for {self.seconds:g} s",
            Strike.LOST_KEY: f"{self.key} lost",
        }
        return f"{what[self.strike]}: {', '.join(self.names) or 'whoever comes there'}"


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


def make_plan(seed: int, requests: int, kills: int, points: Sequence[str], others: Sequence[Disruption] = ()) -> Plan:
    """Returns the run of a seed.

    Args:
        seed: decides everything else.
        requests: how many.
        kills: of each kind of process, those by kill points not counted; workers are struck twice as often, a router and a worker
            die together once, and so does everything.
        points: the kill points to trip.
        others: the strikes other than kills.
    """
    draw = random.Random(seed)
    asks = tuple(_ask(draw, number) for number in range(requests))
    strikes = [Disruption(0, SCHEDULERS if point in TAKEOVER_POINTS else (), point) for point in points]
    strikes += [Disruption(0, (draw.choice(ROUTERS), draw.choice(WORKERS))), Disruption(0, PROCESSES)]
    strikes += [Disruption(0, (draw.choice(_members(kind)),)) for kind in KINDS for _ in range(kills)]
    strikes += [Disruption(0, (draw.choice(WORKERS),)) for _ in range(kills)]
    strikes += others
    draw.shuffle(strikes)
    # Independent times, so that some fall together; none before the load is under way, and the last with load enough to come that
    # every kill point is still reached, however slowly a machine recovers from the one before.
    times = sorted(draw.uniform(0.03, 0.75) * requests for _ in strikes)
    return Plan(asks, tuple(replace(strike, at=round(at)) for at, strike in zip(times, strikes, strict=True)))


def other_strikes(seed: int) -> list[Disruption]:
    """Returns the strikes other than kills: each kind of them on each kind of process that it can strike, by a seed."""
    draw = random.Random(seed)
    return [*_pauses(draw), *_clock_steps(draw), *_disk_strikes(draw), *_lost_keys(draw)]


def _pauses(draw: random.Random) -> Iterator[Disruption]:
    for kind in KINDS:
        for seconds in (draw.choice((0.2, 1.0, 4.0)), LONG_PAUSE_S):
            yield Disruption(0, (draw.choice(_members(kind)),), strike=Strike.PAUSE, seconds=seconds)
    yield Disruption(0, WORKERS, strike=Strike.PAUSE, seconds=LONG_PAUSE_S)
    yield Disruption(0, (draw.choice(WORKERS),), strike=Strike.PAUSE, seconds=LOST_PAUSE_S)
    for name in KEEPERS:
        yield Disruption(0, (name,), strike=Strike.PAUSE, seconds=4.0)


def _clock_steps(draw: random.Random) -> Iterator[Disruption]:
    def step(names: Iterable[str], ahead_s: float, seconds: float, *, ends_in_death: bool = False) -> Disruption:
        return Disruption(0, tuple(names), "", Strike.CLOCK, seconds, ahead_s, ends_in_death)

    yield step(["valkey"], 600.0, 2.0)
    yield step(["valkey"], -600.0, 4.0)
    yield step(["valkey"], 300.0, 3.0, ends_in_death=True)
    for kind in KINDS[:-1]:
        yield step([draw.choice(_members(kind))], draw.choice((-1.0, 1.0)) * draw.choice((30.0, 300.0, 3_000.0)), 4.0)
    yield step(PROCESSES, -300.0, 4.0)
    yield step(PROCESSES, 300.0, 4.0, ends_in_death=True)


def _disk_strikes(draw: random.Random) -> Iterator[Disruption]:
    for seconds in (draw.choice((1.0, 4.0)), 14.0):
        yield Disruption(0, PROCESSES, strike=Strike.FULL_DISK, seconds=seconds)
    for kind in ("router", "worker", "scheduler", "quota", "metering"):
        yield Disruption(
            0, (draw.choice(_members(kind)),), strike=Strike.FILE_SIZE, seconds=draw.choice((1.0, 4.0, 8.0))
        )


def _lost_keys(draw: random.Random) -> Iterator[Disruption]:
    for part in TENANT_KEYS:
        yield Disruption(0, ("valkey",), strike=Strike.LOST_KEY, key=f"forebay:{{{draw.choice(UNLUCKY)}}}:{part}")
    for key in SHARED_KEYS:
        yield Disruption(0, ("valkey",), strike=Strike.LOST_KEY, key=key)


def _members(kind: str) -> list[str]:
    return [name for name in PROCESSES if kind_of(name) == kind]


def _ask(draw: random.Random, number: int) -> Ask:
    return Ask(
        number=number,
        tenant=draw.choices(list(TENANTS), [1 if tenant in UNLUCKY else 2 for tenant in TENANTS])[0],
        prompt=tuple(draw.randrange(100, VOCABULARY_TOKENS) for _ in range(draw.randint(4, 120))),
        max_tokens=draw.randint(60, 180),
        seed=draw.getrandbits(63),
        ignore_eos=draw.random() < 0.5,
        # Held back by the worker until it is decided, so a continuation has to take text over, too.
        stop=(_rare_phrase(draw),) if draw.random() < 0.2 else (),
        router=draw.choice(ROUTERS),
        leaves_after=draw.random() * 0.9 if draw.random() < ABORTED_SHARE else None,
        deadline_s=draw.uniform(1.0, 6.0) if draw.random() < HURRIED_SHARE else PATIENT_S,
    )


def _rare_phrase(draw: random.Random) -> str:
    """Returns words that answers often begin to say, and seldom say to the end."""
    words = [text for text in TEXT if text.startswith(" ") and len(text) > 5]
    return f"{draw.choice(('.', ','))}{draw.choice((' The', ' and'))}{draw.choice(words)}"
