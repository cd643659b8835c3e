"""What a router admits by itself while it cannot reach quota: its part of each limit, and not a token more.

A part is of what a tenant may use in any second, in any minute, at once, or of what was left of a day or a month. What was
admitted counts for just as long: for a second, for a minute, until it is settled, and of days and months until a minute after
quota has charged it, since what quota says is left may be as old as that. So an outage that comes and goes admits no more than
one that stays, and this router never more than its part in any of these, whatever happens between.

A refusal says when to try again: what ended requests have used of a second or a minute comes back when that is over, and what
running requests hold when one of them ends. A request that asks nothing of a limit is not refused for it.

Times are in seconds by a clock that does not step while the process lives; where it begins is told by the wall clock, so that
times outlive the process.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from forebay.errors import Code, MeshError, QuotaViolation
from forebay.policy.durations import LEAST_MS, Durations
from forebay.policy.limits import LIMITS, Kind, Limit, Usage
from forebay.words import span

WINDOW_S = 60.0
# Admissions that are remembered at most; further requests are refused.
MOST_REMEMBERED = 10_000
RETRY_AFTER_S = 1.0
# Whose requests' durations are remembered, those of the latest to end.
MOST_TENANTS = 1_000

_BY_NAME = {limit.name: limit for limit in LIMITS}
_COUNTS_FOR_S = {Kind.RATE: 1.0, Kind.WINDOW: WINDOW_S}
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class LocalLimit:
    """This router's part of one limit; `limit` is a name of the contract, and the subject says whose it is."""

    subject: str
    limit: str
    value: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """This router's part of all that a tenant may use, and the highest prices of its requests in nano-USD."""

    limits: tuple[LocalLimit, ...]
    per_request: int = 0
    per_million_prompt_tokens: int = 0
    per_million_completion_tokens: int = 0

    def priced(self, usage: Usage) -> Usage:
        """Returns a usage with the most that it can cost."""
        cost = usage.requests * self.per_request
        cost += -(-usage.prompt_tokens * self.per_million_prompt_tokens // _MILLION)
        cost += -(-usage.completion_tokens * self.per_million_completion_tokens // _MILLION)
        return replace(usage, cost_nano_usd=cost)


@dataclass(frozen=True, slots=True)
class Share:
    """This router's part: one of so many equal ones, 0 for none. Tenants without an allowance are refused."""

    parts: int = 0
    allowances: Mapping[str, Allowance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """A request to be admitted."""

    request_id: str
    tenant_id: str
    key_id: str
    model: str
    prompt_tokens: int
    max_completion_tokens: int


class _Tally:
    """What counts of one limit, by request, oldest first; `open` is how much of it running requests hold."""

    def __init__(self) -> None:
        self.total = self.open = 0
        self._taken: dict[str, tuple[float, int]] = {}
        self._running: set[str] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, request_id: str, at: float, amount: int, *, runs: bool) -> None:
        self._taken[request_id] = (at, amount)
        self.total += amount
        if runs:
            self._running.add(request_id)
            self.open += amount

    def correct(self, request_id: str, amount: int) -> None:
        self._ended(request_id)
        if request_id in self._taken:
            at, taken = self._taken[request_id]
            self._taken[request_id] = (at, amount)
            self.total += amount - taken

    def drop(self, request_id: str) -> None:
        self._ended(request_id)
        _, taken = self._taken.pop(request_id, (0.0, 0))
        self.total -= taken

    def drop_until(self, time: float) -> None:
        while self._taken and next(iter(self._taken.values()))[0] <= time:
            self.drop(next(iter(self._taken)))

    def freed_at(self, amount: int) -> float:
        """Returns when the request was admitted that must go, after all older ones, for so much to be free; else the last one."""
        latest = 0.0
        for at, taken in self._taken.values():
            latest = at
            amount -= taken
            if amount <= 0:
                break
        return latest

    def _ended(self, request_id: str) -> None:
        if request_id in self._running:
            self._running.remove(request_id)
            self.open -= self._taken[request_id][1]


class LocalAdmissions:
    """What this router has admitted by itself and still counts.

    Attributes:
        share: what it may admit; replaced as quota says.
        last_at: when it admitted last; -inf for never.
    """

    def __init__(self) -> None:
        self.share = Share()
        self.last_at = -math.inf
        self._now = -math.inf
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        self._taken: dict[str, Mapping[str, int]] = {}
        self._priced: dict[str, Allowance] = {}
        self._admitted_at: dict[str, tuple[str, float]] = {}
        self._durations: OrderedDict[str, Durations] = OrderedDict()
        self._charged: deque[tuple[float, str]] = deque()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._taken)

    def admit(self, order: Order, now: float) -> Mapping[str, int]:
        """Admits a request; returns what it takes, by counter, with which `restore` can do it again.

        Raises:
            MeshError: RESOURCE_EXHAUSTED naming each limit without room; UNAVAILABLE for a tenant without an allowance.
        """
        now = self._tick(now)
        allowance = self.share.allowances.get(order.tenant_id)
        if allowance is None or any(limit.limit not in _BY_NAME for limit in allowance.limits):
            raise unavailable()
        if len(self._taken) >= MOST_REMEMBERED:
            raise unavailable()
        asked = allowance.priced(Usage(1, order.prompt_tokens, order.max_completion_tokens))
        tenant = f"tenant:{order.tenant_id}"
        subjects = {"mesh", tenant, f"{tenant}/model:{order.model}", f"key:{order.key_id}"}
        taken: dict[str, int] = {}
        full: list[QuotaViolation] = []
        wait_s = 0.0
        for each in allowance.limits:
            if each.subject not in subjects:
                continue
            limit, name = _BY_NAME[each.limit], f"{each.subject}/{each.limit}"
            taken[name] = amount = limit.amount(asked)
            tally = self._tally(name, now)
            over = tally.total + amount - each.value
            if amount and over > 0:
                full.append(QuotaViolation(each.subject, each.limit, each.value, tally.total, amount))
                wait_s = max(wait_s, self._wait_s(order.tenant_id, limit, tally, over, now))
        if full:
            raise _refused(full, wait_s)
        self._count(order.request_id, taken, now, runs=True)
        self._priced[order.request_id] = allowance
        self._admitted_at[order.request_id] = (order.tenant_id, now)
        return taken

    def _wait_s(self, tenant_id: str, limit: Limit, tally: _Tally, over: int, now: float) -> float:
        """Returns in how long a limit without room has room again, or may have."""
        durations = self._durations.get(tenant_id)
        ends_s = (durations or Durations()).median_ms / 1000
        counts_for_s = _COUNTS_FOR_S.get(limit.kind)
        if limit.kind is Kind.HOLD:
            return ends_s
        own_s = (
            RETRY_AFTER_S if counts_for_s is None else max(LEAST_MS / 1000, tally.freed_at(over) + counts_for_s - now)
        )
        return min(own_s, ends_s) if limit.kind is not Kind.RATE and over <= tally.open else own_s

    def restore(self, request_id: str, taken: Mapping[str, int], at: float) -> None:
        """Counts an admission of an earlier life, with which what ran has ended."""
        lasting = {name: amount for name, amount in taken.items() if _limit(name).kind is not Kind.HOLD}
        self._count(request_id, lasting, at, runs=False)

    def _count(self, request_id: str, taken: Mapping[str, int], at: float, *, runs: bool) -> None:
        self.last_at = max(self.last_at, at)
        self._taken[request_id] = taken
        for name, amount in taken.items():
            self._tallies[name].take(request_id, at, amount, runs=runs)

    def settle(self, request_id: str, used: Usage, now: float) -> None:
        """Counts what was used instead of the most that it could be; the place is free. Unknown requests are passed over."""
        if request_id in self._admitted_at:
            tenant_id, admitted_at = self._admitted_at.pop(request_id)
            self._durations.setdefault(tenant_id, Durations()).ended(round((self._tick(now) - admitted_at) * 1000))
            self._durations.move_to_end(tenant_id)
            if len(self._durations) > MOST_TENANTS:
                self._durations.popitem(last=False)
        allowance = self._priced.pop(request_id, None)
        used = allowance.priced(used) if allowance else used
        for name in self._taken.get(request_id, ()):
            limit = _limit(name)
            if limit.kind is Kind.HOLD:
                self._tallies[name].drop(request_id)
            elif limit.kind is not Kind.RATE:
                self._tallies[name].correct(request_id, limit.amount(used))

    def charged(self, request_id: str, now: float) -> None:
        """Quota has charged a request; a minute later it is forgotten."""
        self._charged.append((self._tick(now) + WINDOW_S, request_id))

    def tidy(self, now: float) -> None:
        """Forgets what was charged a minute ago and holds no place any more."""
        now = self._tick(now)
        kept: list[tuple[float, str]] = []
        while self._charged and self._charged[0][0] <= now:
            at, request_id = self._charged.popleft()
            if request_id in self._priced:
                kept.append((at, request_id))  # it runs
                continue
            for name in self._taken.pop(request_id, ()):
                self._tallies[name].drop(request_id)
        self._charged.extendleft(reversed(kept))
        for name in [name for name, tally in self._tallies.items() if not tally]:
            del self._tallies[name]

    def _tick(self, now: float) -> float:
        self._now = max(self._now, now)
        return self._now

    def _tally(self, name: str, now: float) -> _Tally:
        tally = self._tallies[name]
        counts_for_s = _COUNTS_FOR_S.get(_limit(name).kind)
        if counts_for_s is not None:
            tally.drop_until(now - counts_for_s)
        return tally


def unavailable() -> MeshError:
    """Returns the refusal of whoever is not admitted without quota."""
    message = "quota does not answer, and nobody is admitted without it; try again"
    return MeshError(Code.UNAVAILABLE, "QUOTA_UNAVAILABLE", message, retry_after=RETRY_AFTER_S)


def _limit(name: str) -> Limit:
    return _BY_NAME[name.rpartition("/")[2]]


def _refused(violations: Iterable[QuotaViolation], wait_s: float) -> MeshError:
    full = tuple(violations)
    sentences = "; ".join(violation.sentence() for violation in full)
    return MeshError(
        Code.RESOURCE_EXHAUSTED,
        full[0].limit.upper(),
        f"quota does not answer, and this router's part of the limits is used: {sentences}; try again in {span(wait_s)}",
        retry_after=wait_s,
        quota_violations=full,
    )
