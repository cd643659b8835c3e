"""Situations worth looking at, by name: who asks for what, what they are entitled to, and which engines there are."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from forebay.policy.model import TenantPolicy
from forebay.quota.domain.plans import Plan
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.request import ServiceClass
from forebay.simulator.bound import Way
from forebay.simulator.engine import EngineShape, faster
from forebay.simulator.forebay_dispatcher import Standing
from forebay.simulator.loop import Setting
from forebay.simulator.workload import Arrival, Stream, chat, flood, steady
from forebay.worker.domain.step_cost import A10G

FLOOD_TOKENS_PER_S = 1_200.0
"""More than one engine serves in all, so that each flooding client alone could fill it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload with what surrounds it.

    Attributes:
        arrivals: in order of time.
        setting: engines, delays, and where the run is cut.
        standings: classes and weights of clients.
        policies: of clients that have limits.
        plans: of clients that pay by the token.
    """

    arrivals: Sequence[Arrival]
    setting: Setting = field(default_factory=Setting)
    standings: Mapping[str, Standing] = field(default_factory=dict)
    policies: Mapping[str, TenantPolicy] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, float]:
        """Each client's weight within its class; 1 for those that are not named."""
        return {client: standing.weight_milli / 1000 for client, standing in self.standings.items()}

    @property
    def ways(self) -> dict[str, Way]:
        """Where each client stands in the tree of flows: class, tenant, key."""
        of_class = Limits().class_weights
        ways: dict[str, Way] = {}
        for client in {arrival.client for arrival in self.arrivals}:
            standing = self.standings.get(client, Standing())
            tenant = standing.tenant or client, standing.weight_milli / 1000
            service_class = standing.service_class
            ways[client] = (service_class.name, float(of_class[service_class])), tenant, (client, 1.0)
        return ways


def chat_of_27(seed: int, seconds: float = 600.0) -> Scenario:
    """27 clients of very different size, a quarter more than one engine serves."""
    return Scenario(chat(seed, requests=round(2.5 * seconds), seconds=seconds))


def victim(seed: int, seconds: float = 600.0) -> Scenario:
    """A quiet client beside an aggressor that asks for twice what there is; prompts and answers of 256 tokens."""
    shape = (256, 256)
    streams = [Stream("victim", 0.15, shape, shape), Stream("aggressor", 4.0, shape, shape)]
    return Scenario(steady(streams, seconds, seed))


def weights(seed: int, seconds: float = 1_800.0) -> Scenario:
    """Four clients that always want more, with weights 1, 2, 3 and 4."""
    clients = [(f"weight-{weight}", 128, 128) for weight in (1, 2, 3, 4)]
    return Scenario(
        flood(clients, seconds, FLOOD_TOKENS_PER_S),
        Setting(max_tokens=256, until_s=seconds),
        {f"weight-{weight}": Standing(weight_milli=1000 * weight) for weight in (1, 2, 3, 4)},
    )


def asymmetric(seed: int, seconds: float = 600.0) -> Scenario:
    """Two clients that always want more: short prompts with long answers, and long prompts with short answers."""
    return Scenario(
        flood([("long-out", 64, 512), ("long-in", 512, 64)], seconds, FLOOD_TOKENS_PER_S), Setting(until_s=seconds)
    )


def adversary(seed: int, seconds: float = 150.0) -> Scenario:
    """The worst for law 4: each request fills the engine, is charged next to nothing on its dispatch, and cannot be evicted.

    The second client waits while the first is charged for its whole answer. Then it has one answer itself, is still owed a few
    tokens, and so has the engine once more while the first waits.
    """
    shape = EngineShape(kv_tokens=2_048)
    most = shape.kv_tokens - 1
    first = [Arrival(0.0, "first", 1, most, most) for _ in range(10)]
    second = [Arrival(0.0, "second", 1, most - 1, most - 1) for _ in range(10)]
    return Scenario([*first, *second], Setting(shape, until_s=seconds))


def random_schedule(seed: int) -> Scenario:
    """A few clients of random classes, tenants, weights and habits on an engine of random shape, too small for them.

    It is one engine, so that nobody is passed over on one while another makes room, which law 4 leaves out.
    """
    chance = random.Random(seed)
    shape = EngineShape(
        kv_tokens=16 * chance.randint(20, 200),
        max_num_seqs=chance.choice((1, 2, 4, 16, 256)),
        max_num_batched_tokens=chance.choice((32, 128, 2_048)),
        max_model_len=320,
    )
    longest_prompt, most = chance.randint(1, 200), chance.randint(2, 120)
    weights = {f"t{number}": chance.choice((500, 1000, 1000, 2000, 4000)) for number in range(3)}
    standings, arrivals = {}, []
    for client in (f"c{number}" for number in range(chance.randint(2, 6))):
        tenant = chance.choice(("", "", *weights))
        service_class = ServiceClass(1 + sum(map(ord, tenant)) % 3) if tenant else chance.choice(list(ServiceClass))
        standings[client] = Standing(service_class, weights.get(tenant) or chance.choice((500, 1000, 4000)), tenant)
        shortest_prompt = chance.randint(1, longest_prompt)
        asked, gap, at_once = chance.randint(1, most), chance.uniform(0.02, 1.0), chance.choice((1, 8))
        at = chance.choice((0.0, chance.uniform(0.0, 10.0)))
        for number in range(chance.randint(5, 25)):
            at += chance.expovariate(1 / gap) if number % at_once == 0 else 0.0
            prompt, output = chance.randint(shortest_prompt, longest_prompt), chance.randint(1, asked)
            arrivals.append(Arrival(at, client, prompt, output, asked))
    setting = Setting(shape, delay_s=chance.choice((0.0, 0.005, 0.25)))
    return Scenario(sorted(arrivals, key=lambda arrival: arrival.at), setting, standings)


@dataclass(frozen=True, slots=True)
class _Habit:
    plan: str
    per_second: float
    tokens: tuple[int, int]  # of a request, prompt and completion together


FOUR_TENANTS = (
    _Habit("basic", 0.5, (50, 200)),
    _Habit("standard", 2.0, (100, 500)),
    _Habit("premium", 5.0, (200, 800)),
    _Habit("enterprise", 10.0, (500, 1_500)),
)


def four_tenants(seed: int, plans: Mapping[str, Plan], seconds: float = 180.0) -> Scenario:
    """One tenant on each of four plans, all asking for more than their limits or the engines allow.

    There are two engines, each four times as fast as an A10G and with four times its cache. A request is a third to two thirds
    prompt, and asks for no more than the largest of its tenant comes to.

    Args:
        seed: makes the run repeatable.
        plans: by name; the four must be there.
        seconds: the span in which requests come.
    """
    arrivals = []
    for habit in FOUR_TENANTS:
        chance = random.Random(f"{seed} {habit.plan}")
        at = chance.expovariate(habit.per_second)
        while at < seconds:
            total = chance.randint(*habit.tokens)
            prompt = round(total * chance.uniform(1 / 3, 2 / 3))
            arrivals.append(Arrival(at, habit.plan, prompt, total - prompt, habit.tokens[1] - prompt))
            at += chance.expovariate(habit.per_second)
    mine = {habit.plan: plans[habit.plan] for habit in FOUR_TENANTS}
    return Scenario(
        sorted(arrivals, key=lambda arrival: arrival.at),
        Setting(EngineShape(kv_tokens=40_000, cost=faster(A10G, 4)), workers=2),
        {name: Standing(ServiceClass(plan.service_class.value), plan.weight_milli) for name, plan in mine.items()},
        {name: plan.tenant(name, {}, {}, b"") for name, plan in mine.items()},
        mine,
    )


SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "chat": chat_of_27,
    "victim": victim,
    "weights": weights,
    "asymmetric": asymmetric,
    "adversary": adversary,
}
