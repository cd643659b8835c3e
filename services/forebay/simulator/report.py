"""What a run came to for each client: asked, let in, served, paid, and its share against the one it was owed."""

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

from forebay.simulator.loop import INPUT_WEIGHT, OUTPUT_WEIGHT, Outcome
from forebay.simulator.measures import Quantiles, jain, owed_by_class, quantiles, service_of
from forebay.simulator.scenarios import Scenario


@dataclass(slots=True)
class ClientReport:
    """One client's part.

    Attributes:
        attempted, accepted: requests; what was accepted was let in and not refused later.
        refused: reasons, and how often each.
        tokens: of prompts and completions served.
        cost_nano_usd: their price by the client's plan; None for clients that have none.
        owed, received: shares of the service so long as there is something to divide: up to the last arrival, and until half
            of all service is given if all come early.
        first_token: times to the first token, in seconds.
    """

    client: str
    attempted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    cost_nano_usd: int | None = None
    owed: float = 0.0
    received: float = 0.0
    first_token: Quantiles = field(default_factory=lambda: Quantiles(0.0, 0.0))

    @property
    def accepted(self) -> int:
        """Requests that were not refused."""
        return self.attempted - self.refused.total()


@dataclass(frozen=True, slots=True)
class Report:
    """All clients, those with most service owed first, and Jain's index of received over owed."""

    clients: list[ClientReport]
    jain: float

    @property
    def quiet(self) -> list[str]:
        """The half of the clients that asks least often: on them schedulers differ most."""
        ordered = sorted(self.clients, key=lambda client: (client.attempted, client.client))
        return [client.client for client in ordered[: max(1, len(ordered) // 2)]]


def report(scenario: Scenario, outcome: Outcome) -> Report:
    """Adds a run up."""
    clients = {client: ClientReport(client) for client in outcome.service}
    demand: defaultdict[str, float] = defaultdict(float)
    waited: defaultdict[str, list[float]] = defaultdict(list)
    for one in outcome.served:
        client = clients[one.arrival.client]
        client.attempted += 1
        if one.refusal:
            client.refused[one.refusal] += 1
            continue
        demand[client.client] += INPUT_WEIGHT * one.arrival.prompt + OUTPUT_WEIGHT * min(one.arrival.output, one.asked)
        if one.first_token_at is not None:
            client.tokens += one.arrival.prompt + one.generated
            waited[client.client].append(one.first_token_at - one.arrival.at)
    contended = service_of(outcome, 0.0, _contended_seconds(outcome))
    due = owed_by_class(contended, scenario.standings, demand)
    total = sum(contended.values()) or 1.0
    for name, client in clients.items():
        client.owed, client.received = due[name] / total, contended[name] / total
        client.first_token = quantiles(waited[name])
        plan = scenario.plans.get(name)
        if plan is not None and plan.nano_usd_per_million_tokens is not None:
            client.cost_nano_usd = client.tokens * plan.nano_usd_per_million_tokens // 1_000_000
    ordered = sorted(clients.values(), key=lambda client: (-client.owed, client.client))
    return Report(ordered, jain([client.received / client.owed for client in ordered if client.owed]))


def _contended_seconds(outcome: Outcome) -> float:
    given = list(accumulate(map(sum, zip_longest(*outcome.service.values(), fillvalue=0.0))))
    half = bisect_left(given, given[-1] / 2) + 1 if given else 0
    return max(half, max(one.arrival.at for one in outcome.served))
