"""The price table: what whom pays for which item from when on."""

from __future__ import annotations

import enum
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from forebay.metering.domain.event import MAX_TEXT_BYTES, MAX_TIME_NS, UsageEvent

# A dollar a token, and room in 64 bits for the largest event at that price.
MAX_NANO_USD_PER_MILLION = 10**15
MAX_PRICES = 100_000

_SUBJECT = re.compile(r"default|(tenant|plan|model):.+")


class Item(enum.Enum):
    """What has a price; the values are the names in lines and files."""

    PROMPT_TOKENS = "prompt_tokens"
    CACHED_TOKENS = "cached_tokens"
    COMPLETION_TOKENS = "completion_tokens"
    GPU_SECONDS = "gpu_seconds"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Price:
    """One price.

    Attributes:
        subject: tenant:acme, plan:basic, model:smollm2 or default.
        nano_usd_per_million: for a million of the item: tokens, seconds, requests.
        effective_from_ns: applies to attempts that end at or after it; 0 for ever.
        model: only on this model; empty for all. For tenants and plans.
    """

    subject: str
    item: Item
    nano_usd_per_million: int
    effective_from_ns: int = 0
    model: str = ""


class PriceTable:
    """Prices, indexed; immutable. The most specific subject with a price in force wins: tenant, plan, model, default.

    A plan's price counts only for tenants that pay by plan. Within a subject a price for the attempt's model goes
    before one for all models, then the latest in force.
    """

    def __init__(self, prices: Iterable[Price]) -> None:
        """Makes a table of prices in which `problems` finds none."""
        self.prices = tuple(sorted(prices, key=lambda p: (p.subject, p.model, p.item.value, p.effective_from_ns)))
        self._dated: dict[tuple[str, str, Item], list[Price]] = {}
        for price in self.prices:
            self._dated.setdefault((price.subject, price.model, price.item), []).append(price)

    def price(self, event: UsageEvent, item: Item) -> Price:
        """Returns what `event` pays for `item`."""
        subjects = [f"tenant:{event.tenant_id}", f"model:{event.model}", "default"]
        if event.priced_by_plan:
            subjects.insert(1, f"plan:{event.plan}")
        for subject in subjects:
            for model in (event.model, ""):
                dated = self._dated.get((subject, model, item), [])
                in_force = bisect_right(dated, event.finished_at_ns, key=lambda price: price.effective_from_ns)
                if in_force:
                    return dated[in_force - 1]
        raise LookupError(f"no default price for {item.value}")


def problems(prices: list[Price]) -> Iterator[tuple[int | None, str]]:
    """Yields everything that keeps `prices` from being a table: which price, None for the table as a whole, and a sentence."""
    if len(prices) > MAX_PRICES:
        yield None, f"holds {len(prices):,} prices; at most {MAX_PRICES:,} are allowed"
    for item in Item:
        if not any(p.subject == "default" and p.item is item and p.effective_from_ns == 0 for p in prices):
            yield None, f"default has no price for {item.value} without effective_from; every event must have one"
    seen = set()
    for which, price in enumerate(prices):
        name = f"of {price.subject[:100]}"
        if not _SUBJECT.fullmatch(price.subject) or len(price.subject.encode()) > MAX_TEXT_BYTES:
            yield which, f"{name}: the subject must be default, tenant:NAME, plan:NAME or model:NAME"
        if price.model and not price.subject.startswith(("tenant:", "plan:")):
            yield which, f"{name}: only a tenant's or a plan's price can be for one model"
        if len(price.model.encode()) > MAX_TEXT_BYTES:
            yield which, f"{name}: the model's name has more than {MAX_TEXT_BYTES} bytes"
        if not 0 <= price.nano_usd_per_million <= MAX_NANO_USD_PER_MILLION:
            most = MAX_NANO_USD_PER_MILLION
            yield which, f"{name}: must be from 0 to {most:,} nano-USD per million, which is $1 for each"
        if not 0 <= price.effective_from_ns <= MAX_TIME_NS:
            yield which, f"{name}: effective_from must be a time from 1970 to 2262"
        key = (price.subject, price.model, price.item, price.effective_from_ns)
        if key in seen:
            yield which, f"{name}: there is another price of the same subject, model and effective_from"
        seen.add(key)
