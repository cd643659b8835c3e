"""What a request costs, at most and truly, by the price table that metering sends.

The rules are the ledger's: the most specific subject with a price in force wins (tenant, plan for tenants priced by plan, model,
default), and within a subject a price for this model goes before one for all; each item is rounded once, half up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from forebay.policy.model import TenantPolicy
from forebay.quota.domain.limits import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """One price: nano-USD for a million of the item, from a time on, for all models or one."""

    subject: str
    item: str
    nano_usd_per_million: int
    effective_from_s: float = 0.0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Dearest:
    """The highest prices that a tenant's requests can have, in nano-USD."""

    nano_usd_per_request: int = 0
    nano_usd_per_million_prompt_tokens: int = 0
    nano_usd_per_million_completion_tokens: int = 0


class PriceTable:
    """Prices, indexed; immutable. An item without any price costs nothing."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._dated: defaultdict[tuple[str, str, str], list[Price]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: price.effective_from_s):
            self._dated[price.subject, price.model, price.item].append(price)
        self._priced = {(subject, model) for subject, model, _ in self._dated}

    def cost(self, tenant: TenantPolicy, model: str, used: Usage, now_s: float) -> int:
        """Returns what was used costs, in nano-USD."""
        billed = (
            ("requests", used.requests, _MILLION),
            ("prompt_tokens", used.prompt_tokens - used.cached_tokens, _MILLION),
            ("cached_tokens", used.cached_tokens, _MILLION),
            ("completion_tokens", used.completion_tokens, _MILLION),
            ("gpu_seconds", used.gpu_time_ns, _MILLION * 10**9),
        )
        lists = self._lists(tenant, model)
        return sum(_rounded(each * self._price(lists, item, now_s), per) for item, each, per in billed if each)

    def most(self, tenant: TenantPolicy, model: str, asked: Usage, now_s: float) -> int:
        """Returns what a request costs at most, in nano-USD, cached or not; but for GPU time, which nobody knows before.

        Where GPU time has a price it is at least 1, so that a spent budget does not take the request for a free one.
        """
        lists = self._lists(tenant, model)
        prompt = max(self._price(lists, item, now_s) for item in ("prompt_tokens", "cached_tokens"))
        completion = self._price(lists, "completion_tokens", now_s)
        request = self._price(lists, "requests", now_s)
        lines = (asked.prompt_tokens * prompt, asked.completion_tokens * completion, asked.requests * request)
        # Of a prompt in part cached, two lines are rounded.
        most = sum(-(-line // _MILLION) for line in lines) + (1 if asked.prompt_tokens * prompt else 0)
        return most or min(1, asked.requests * self._price(lists, "gpu_seconds", now_s))

    def dearest(self, tenant: TenantPolicy, now_s: float) -> Dearest:
        """Returns the highest prices over all models, for whoever must decide without the table."""
        models = {"", *(model for _, model in self._priced)}
        models |= {subject.removeprefix("model:") for subject, _ in self._priced if subject.startswith("model:")}
        lists = [self._lists(tenant, model) for model in models]

        def highest(*items: str) -> int:
            return max(self._price(of_model, item, now_s) for of_model in lists for item in items)

        request = -(-highest("requests") // _MILLION) or min(1, highest("gpu_seconds"))
        return Dearest(request, highest("prompt_tokens", "cached_tokens"), highest("completion_tokens"))

    def _lists(self, tenant: TenantPolicy, model: str) -> list[tuple[str, str]]:
        """Returns subject and model of the price lists that hold for a tenant on a model, the most specific first."""
        subjects = [f"tenant:{tenant.tenant_id}", f"model:{model}", "default"]
        if tenant.priced_by_plan:
            subjects.insert(1, f"plan:{tenant.plan}")
        candidates = ((subject, of_model) for subject in subjects for of_model in (model, ""))
        return [candidate for candidate in candidates if candidate in self._priced]

    def _price(self, lists: Iterable[tuple[str, str]], item: str, now_s: float) -> int:
        for subject, model in lists:
            dated = self._dated.get((subject, model, item), [])
            in_force = bisect_right(dated, now_s, key=lambda price: price.effective_from_s)
            if in_force:
                return dated[in_force - 1].nano_usd_per_million
        return 0


def _rounded(product: int, per: int) -> int:
    return (2 * product + per) // (2 * per)
