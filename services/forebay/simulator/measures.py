"""What is measured of a run.

Service difference is that of the VTC evaluation (Sheng et al., OSDI '24): in a window of time, each client lacks the lesser
of what the best served one got beyond it and of how far its own service is from its demand, and the lacks are summed. A request's
service counts as spread evenly from its first to its last token, its demand falls on its arrival, and both are weighted tokens
(1 for input, 2 for output) per second. What was refused is no demand, as there. Where clients are not each other's equals, which
they are there, what the best served one got is taken in proportion to what each is entitled to.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forebay.scheduler.domain.request import ServiceClass
from forebay.simulator.forebay_dispatcher import PATIENT, Standing
from forebay.simulator.loop import INPUT_WEIGHT, OUTPUT_WEIGHT, Outcome

WINDOW_S = 60.0
WARM_UP_S = 30.0
WINDOWS = 20
"""The evaluation's grid: after the warm-up the span of arrivals is cut in so many parts, and a window begins at each cut."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """The largest and the mean service difference over the windows, in weighted tokens per second."""

    max_diff: float
    avg_diff: float


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The median and the 99th percentile."""

    p50: float
    p99: float


NO_STANDINGS: Mapping[str, Standing] = {}


def fairness(outcome: Outcome, standings: Mapping[str, Standing] = NO_STANDINGS) -> Fairness:
    """Measures the service difference; both figures are 0 for a run that is too short to have a window."""
    differences = [difference for _, difference in service_difference(outcome, standings)]
    return Fairness(max(differences, default=0.0), statistics.fmean(differences) if differences else 0.0)


def service_difference(outcome: Outcome, standings: Mapping[str, Standing] = NO_STANDINGS) -> list[tuple[float, float]]:
    """Returns the middle of each window and the service difference in it.

    Args:
        outcome: of the run.
        standings: of clients; those that are not named have the usual one.
    """
    clients = {one.arrival.client for one in outcome.served}
    # What each would get of one a head if all of them always wanted more: 1 where all are equal.
    entitled = owed_by_class(dict.fromkeys(clients, 1.0), standings, dict.fromkeys(clients, math.inf))
    span = max((one.arrival.at for one in outcome.served), default=0.0) - WARM_UP_S
    starts = [span / WINDOWS * number for number in range(1, WINDOWS)] if span > WARM_UP_S else []
    return [(start + WINDOW_S / 2, _difference(outcome, entitled, start, start + WINDOW_S)) for start in starts]


def _difference(outcome: Outcome, entitled: Mapping[str, float], start: float, end: float) -> float:
    demand: defaultdict[str, float] = defaultdict(float)
    service: defaultdict[str, float] = defaultdict(float)
    for one in outcome.served:
        client, at = one.arrival.client, one.arrival.at
        if start <= at < end and not one.refusal:
            demand[client] += INPUT_WEIGHT * one.arrival.prompt + OUTPUT_WEIGHT * min(one.arrival.output, one.asked)
        if one.first_token_at is None or at >= end:
            continue
        last = outcome.ended_at if one.finished_at is None else one.finished_at
        tokens = INPUT_WEIGHT * one.arrival.prompt + OUTPUT_WEIGHT * one.generated
        if last > one.first_token_at:
            overlap = max(0.0, min(last, end) - max(one.first_token_at, start))
            service[client] += tokens * overlap / (last - one.first_token_at)
        elif start <= last < end:
            service[client] += tokens
    most = max((got / entitled[client] for client, got in service.items()), default=0.0)
    clients = demand.keys() | service.keys()
    lacks = [
        min(most * entitled[client] - service[client], abs(demand[client] - service[client])) for client in clients
    ]
    return sum(lacks) / (end - start)


def tokens_per_second(outcome: Outcome) -> float:
    """Returns prompt and generated tokens of what was served, over the time from the start to the last of them."""
    tokens = sum(one.arrival.prompt + one.generated for one in outcome.served if one.first_token_at is not None)
    return tokens / outcome.ended_at if outcome.ended_at else 0.0


def service_of(outcome: Outcome, start: float = 0.0, end: float | None = None) -> dict[str, float]:
    """Returns each client's weighted tokens between two whole seconds of the run."""
    last = None if end is None else int(end)
    return {client: sum(seconds[int(start) : last]) for client, seconds in outcome.service.items()}


def owed(service: Mapping[str, float], weights: Mapping[str, float], demand: Mapping[str, float]) -> dict[str, float]:
    """Divides what was served in all by weight among clients, none getting more than it asked for (max-min fairness).

    Args:
        service: what each client got.
        weights: of each; 1 for those that are not named.
        demand: what each client asked for, in the same unit.
    """
    due = dict.fromkeys(service, 0.0)
    rest, open_clients = sum(service.values()), set(service)
    while open_clients and rest > 1e-9:
        total = sum(weights.get(client, 1.0) for client in open_clients)
        content = {c for c in open_clients if demand[c] <= rest * weights.get(c, 1.0) / total}
        for client in content or open_clients:
            due[client] = demand[client] if content else rest * weights.get(client, 1.0) / total
        if not content:
            break
        rest -= sum(demand[client] for client in content)
        open_clients -= content
    return due


def owed_by_class(
    service: Mapping[str, float], standings: Mapping[str, Standing], demand: Mapping[str, float]
) -> dict[str, float]:
    """Divides what was served as the tree of flows does: among classes by their weights, then in each by clients' weights.

    Args:
        service: what each client got.
        standings: of clients; those that are not named have the usual one.
        demand: what each client asked for, in the same unit.
    """
    classes: defaultdict[ServiceClass, list[str]] = defaultdict(list)
    for client in service:
        classes[standings.get(client, Standing()).service_class].append(client)
    due_of_class = owed(
        {name.name: sum(service[client] for client in clients) for name, clients in classes.items()},
        {name.name: PATIENT.class_weights[name] for name in classes},
        {name.name: sum(demand[client] for client in clients) for name, clients in classes.items()},
    )
    due: dict[str, float] = {}
    for name, clients in classes.items():
        got = sum(service[client] for client in clients)
        scale = due_of_class[name.name] / got if got else 0.0
        weights = {client: standings.get(client, Standing()).weight_milli / 1000 for client in clients}
        due |= owed({client: service[client] * scale for client in clients}, weights, demand)
    return due


def jain(values: Sequence[float]) -> float:
    """Returns Jain's index of fairness: 1 when all are equal, 1/n when one has all."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def first_token_seconds(outcome: Outcome, *clients: str) -> list[float]:
    """Returns the time to the first token of each request that got one, in order of arrival; of these clients, or of all."""
    wanted = set(clients)
    return [
        one.first_token_at - one.arrival.at
        for one in outcome.served
        if one.first_token_at is not None and (not wanted or one.arrival.client in wanted)
    ]


def quantiles(values: Sequence[float]) -> Quantiles:
    """Returns the least values that half, and 99 of 100, do not exceed; 0 when there are none."""
    ordered = sorted(values) or [0.0]
    return Quantiles(*(ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.99)))
