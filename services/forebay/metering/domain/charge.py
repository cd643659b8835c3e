"""From an event to money: what an attempt bills, and the lines that price it.

Every line is rounded once, half up, away from zero, so that a line taken back (the same with its quantity negated) cancels the
line that it takes back, and the sum over an attempt's rows is always that of its last state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from forebay.metering.domain.event import NANO, Source, UsageEvent
from forebay.metering.domain.prices import Item, PriceTable

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What is billed, or by how much a correction changes it.

    Attributes:
        requests: 1 for the attempt that bills its request's prompt.
        prompt_tokens: cached ones included.
        gpu_time_ns: recomputation left out; that is the mesh's own account.
    """

    attempts: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    gpu_time_ns: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Returns the sum."""
        return Usage(
            self.attempts + other.attempts,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.gpu_time_ns + other.gpu_time_ns,
        )

    def __neg__(self) -> Usage:
        """Returns what takes this back."""
        return Usage(
            -self.attempts,
            -self.requests,
            -self.prompt_tokens,
            -self.cached_tokens,
            -self.completion_tokens,
            -self.gpu_time_ns,
        )


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One line of a row's price.

    Attributes:
        quantity: in the item's unit, ns for gpu_seconds; negative where a correction takes back.
        source: the subject whose price it is.
    """

    item: Item
    quantity: int
    nano_usd_per_million: int
    source: str

    @property
    def amount_nano_usd(self) -> int:
        """quantity × price, rounded once, half up."""
        per = MILLION * NANO if self.item is Item.GPU_SECONDS else MILLION
        amount = (2 * abs(self.quantity) * self.nano_usd_per_million + per) // (2 * per)
        return -amount if self.quantity < 0 else amount


def billed(attempts: Mapping[int, UsageEvent]) -> dict[int, Usage]:
    """Returns what each attempt of one request bills, by its number (rule P6).

    The first of them bills the prompt and the request; it need not be attempt 1, which may have been refused before it
    reached an engine. Each bills its completion up to where a later one begins. That all follows from the attempts alone,
    whatever the order in which they became known.

    Args:
        attempts: what is believed of each attempt, by its number; at least one.
    """
    usages: dict[int, Usage] = {}
    first, clip = min(attempts), None
    for number in sorted(attempts, reverse=True):
        event = attempts[number]
        usages[number] = _billed(event, clip, first=number == first)
        clip = event.completion_from if clip is None else min(clip, event.completion_from)
    return usages


def _billed(event: UsageEvent, clip: int | None, *, first: bool) -> Usage:
    until = event.completion_to
    if clip is not None:
        # A checkpoint may be behind what the client was given, which is where a later attempt went on.
        until = clip if event.source is Source.WORKER_RECOVERY else min(until, clip)
    return Usage(
        attempts=1,
        requests=int(first),
        prompt_tokens=event.prompt_tokens if first else 0,
        cached_tokens=event.cached_tokens if first else 0,
        completion_tokens=max(0, until - event.completion_from),
        gpu_time_ns=event.gpu_time_ns - event.recomputed_gpu_time_ns,
    )


def charge(event: UsageEvent, usage: Usage, table: PriceTable) -> tuple[PriceLine, ...]:
    """Returns the lines that price `usage` of `event`, one for each item of which there is any."""
    quantities = {
        Item.PROMPT_TOKENS: usage.prompt_tokens - usage.cached_tokens,
        Item.CACHED_TOKENS: usage.cached_tokens,
        Item.COMPLETION_TOKENS: usage.completion_tokens,
        Item.GPU_SECONDS: usage.gpu_time_ns,
        Item.REQUESTS: usage.requests,
    }
    lines = []
    for item, quantity in quantities.items():
        if quantity:
            price = table.price(event, item)
            lines.append(PriceLine(item, quantity, price.nano_usd_per_million, price.subject))
    return tuple(lines)


def net(lines: Iterable[PriceLine]) -> tuple[PriceLine, ...]:
    """Returns the lines that are left when what was taken back is gone."""
    quantities: dict[tuple[Item, int, str], int] = {}
    for line in lines:
        key = (line.item, line.nano_usd_per_million, line.source)
        quantities[key] = quantities.get(key, 0) + line.quantity
    return tuple(PriceLine(item, n, price, source) for (item, price, source), n in quantities.items() if n)


def changes(old: tuple[PriceLine, ...], new: tuple[PriceLine, ...]) -> tuple[PriceLine, ...]:
    """Returns the lines that turn `old` into `new`: each that is gone taken back whole, each that is new as it is."""
    taken_back = (
        PriceLine(line.item, -line.quantity, line.nano_usd_per_million, line.source) for line in old if line not in new
    )
    return (*taken_back, *(line for line in new if line not in old))
