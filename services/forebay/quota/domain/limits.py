"""Which limits are enforced, and what a request takes of each.

A limit that a request meets is a *row*. Every rule about limits is written once, over rows, here and in the scripts alike: one
more limit, or the same limits for a key or for a tenant on one model, is one more row and no more code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from forebay.errors import QuotaViolation
from forebay.policy.limits import LIMITS
from forebay.policy.limits import Kind as Kind
from forebay.policy.limits import Usage as Usage
from forebay.policy.model import KeyPolicy, Limits, TenantPolicy, Thresholds
from forebay.quota.domain.periods import Period, calendar

# Doubles, which the scripts compare with, are exact below it: no limit above this can be kept, and this is nine million dollars.
MOST = 2**53 - 1
# However far a tenant is above its threshold, a request is not held back for longer.
MAX_START_AFTER_MS = 60_000


@dataclass(frozen=True, slots=True)
class Row:
    """One limit as one request meets it.

    Attributes:
        subject: whose limit, such as "tenant:acme".
        limit: which, such as "tokens_per_minute".
        kind: for how long what is taken counts.
        value: what may be used at most, the hard share of the limit; None where there is none, and what is taken is only counted.
        amount: what the request takes.
        base: the limit itself, which throttling slows down to and a rate drains by; 0 for `value`.
        warn_at: whoever reaches it is warned; None for nobody.
        throttle_at: whoever is above it is slowed down; None for nobody.
        period: the day or the month in which it counts, for that kind.
    """

    subject: str
    limit: str
    kind: Kind
    value: int | None
    amount: int
    base: int = 0
    warn_at: int | None = None
    throttle_at: int | None = None
    period: Period | None = None

    @property
    def name(self) -> str:
        """The counter's name, unique within the tenant; the limit is what follows the last slash."""
        return f"{self.subject}/{self.limit}"

    @property
    def drain(self) -> int:
        """What of a rate drains in a second."""
        return self.base or self.value or 0

    @property
    def notice_at(self) -> int | None:
        """From where on `warns` and `start_after_ms` have something to say."""
        return min((at for at in (self.warn_at, self.throttle_at) if at is not None), default=None)

    def has_room(self, used: int) -> bool:
        """Whether the amount fits beside what is used; nothing always does."""
        return self.value is None or self.amount == 0 or used + self.amount <= self.value

    def violation(self, used: int) -> QuotaViolation:
        """Returns the refusal of a row without room."""
        assert self.value is not None
        return QuotaViolation(self.subject, self.limit, self.value, used, self.amount)

    def warns(self, used: int) -> bool:
        """Whether the amount, beside what is used, crosses the threshold at which the tenant is warned."""
        return self.warn_at is not None and used < self.warn_at <= used + self.amount

    def start_after_ms(self, used: int) -> int:
        """Returns for how long the request is held back, so that what is above the threshold goes at the limit's own rate.

        Each request is held back for as long as the limit takes for all that is above the threshold with it, so the next one
        comes later by its own share. What is held until its end has no rate, and is not slowed down; nor is a request that asks
        nothing of the limit.
        """
        if self.throttle_at is None or self.kind is Kind.HOLD or self.amount == 0:
            return 0
        excess = used + self.amount - self.throttle_at
        per_ms = {Kind.RATE: 1_000, Kind.WINDOW: 60_000}.get(self.kind, 0)
        if self.period is not None:
            per_ms = self.period.ends_at_ms - self.period.starts_at_ms
        return min(MAX_START_AFTER_MS, -(-excess * per_ms // (self.base or 1))) if excess > 0 else 0


# Those in money.
BUDGETS = ("daily_budget_nano_usd", "monthly_budget_nano_usd")
# What a limit that is set later must not forget: it lasts longer than anybody would wait for it to fill.
_ALWAYS_COUNTED = {
    limit.name for limit in LIMITS if limit.kind is not Kind.RATE and not limit.name.startswith(("input", "output"))
}


def rows_of(
    tenant: TenantPolicy, usage: Usage, now_s: float = 0.0, key: KeyPolicy | None = None, model: str = ""
) -> tuple[Row, ...]:
    """Returns every limit as a request of the tenant by this key on this model meets it.

    Of the tenant's own, a limit that it does not have is counted all the same, so that it holds from the moment it is set; input
    and output apart, the rate, and the limits of keys and models are counted from when they are set.

    Args:
        tenant: whose.
        usage: what the request takes.
        now_s: the present in seconds since the epoch, which says in which day and month it counts.
        key: by which key.
        model: on which model.
    """
    rows = list(_rows(f"tenant:{tenant.tenant_id}", tenant.limits, _ALWAYS_COUNTED, tenant, usage, now_s))
    if model in tenant.model_limits:
        subject = f"tenant:{tenant.tenant_id}/model:{model}"
        rows += _rows(subject, tenant.model_limits[model], set(), tenant, usage, now_s)
    if key is not None:
        rows += _rows(f"key:{key.key_id}", key.limits, set(), tenant, usage, now_s)
    return tuple(rows)


def has_budget(limits: Limits) -> bool:
    """Whether any of them is in money."""
    return any(getattr(limits, name) is not None for name in BUDGETS)


def hold_values(tenant: TenantPolicy, keys: Iterable[KeyPolicy]) -> tuple[Row, ...]:
    """Returns what may be held at once, by the tenant, on each of its models and by each of these keys: what revival asks."""
    subjects: Mapping[str, Limits] = {
        f"tenant:{tenant.tenant_id}": tenant.limits,
        **{f"tenant:{tenant.tenant_id}/model:{model}": limits for model, limits in tenant.model_limits.items()},
        **{f"key:{key.key_id}": key.limits for key in keys},
    }
    nothing = Usage(0, 0, 0)
    return tuple(
        row
        for subject, limits in subjects.items()
        for row in _rows(subject, limits, set(), tenant, nothing, 0.0)
        if row.kind is Kind.HOLD
    )


def charged(rows: Iterable[Row], now_s: float) -> list[Row]:
    """Returns rows as what was admitted without the counters meets them.

    There is always room, a rate has drained by now, and a day that is over is not opened again.
    """
    return [
        replace(row, value=None)
        for row in rows
        if row.kind is not Kind.RATE and (row.period is None or now_s * 1000 < row.period.ends_at_ms)
    ]


def amounts_of(usage: Usage) -> dict[str, int]:
    """Returns what a settled request used of each limit that goes on counting after it."""
    return {
        limit.name: min(limit.amount(usage), MOST + 1) for limit in LIMITS if limit.kind in (Kind.WINDOW, Kind.PERIOD)
    }


def _rows(
    subject: str, limits: Limits, always: set[str], tenant: TenantPolicy, usage: Usage, now_s: float
) -> Iterator[Row]:
    thresholds = tenant.thresholds
    now = calendar(now_s, tenant.time_zone)
    for limit in LIMITS:
        base: int | None = getattr(limits, limit.name)
        if base is None and limit.name not in always:
            continue
        period = (now.month if limit.monthly else now.day) if limit.kind is Kind.PERIOD else None
        amount = min(limit.amount(usage), MOST + 1)
        if base is None:
            yield Row(subject, limit.name, limit.kind, None, amount, period=period)
        else:
            yield Row(
                subject,
                limit.name,
                limit.kind,
                _share(base, thresholds.hard_percent),
                amount,
                base,
                -(-base * thresholds.warn_percent // 100),
                _throttle_at(base, thresholds),
                period,
            )


def _throttle_at(base: int, thresholds: Thresholds) -> int | None:
    if thresholds.throttle_percent >= thresholds.hard_percent:
        return None
    return _share(base, thresholds.throttle_percent)


def _share(base: int, percent: int) -> int:
    """Returns a share rounded down, not below 1; of a budget of nothing, nothing."""
    return min(max(min(1, base), base * percent // 100), MOST)
