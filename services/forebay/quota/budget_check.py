"""The job that sets budgets against the ledger each minute, and says where they differ.

Each round takes down what the counters have, and compares what was taken down a minute before: so long the ledger has had to take
in what had ended by then. Tenants come one after the other, so the ledger has one such question at a time, and a round that takes
longer than a minute simply delays the next. Every replica of quota does this for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.counters import CounterStore
from forebay.quota.domain.comparison import LONGEST_MS, Comparison, compare
from forebay.quota.domain.limits import Row, Usage, amounts_of, rows_of
from forebay.quota.domain.periods import Period
from forebay.quota.domain.rebuild import CountersUnknownError, Totals
from forebay.quota.metrics import BUDGET_DIFFERENCE, BUDGETS_DIFFERING
from forebay.quota.policies import PolicyFeed
from forebay.quota.usage_sums import UsageSums, Used
from forebay.telemetry.logs import get_logger

EVERY_S = 60.0

log = get_logger("budget_check")


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the counters had."""

    rows: tuple[Row, ...]
    totals: Totals


class BudgetCheck:
    """Compares; `run` must be running.

    Attributes:
        comparisons: the latest by tenant and limit, of tenants that have any.
    """

    def __init__(self, feed: PolicyFeed, counters: CounterStore, sums: UsageSums, clock: Clock) -> None:
        self._feed = feed
        self._counters = counters
        self._sums = sums
        self._clock = clock
        self._taken: dict[str, _Taken] = {}
        self.comparisons: Mapping[str, Mapping[str, Comparison]] = {}

    async def run(self) -> None:
        """Compares each minute, until cancelled."""
        while True:
            try:
                await self.compare()
            except MeshError as error:
                log.warning("budgets not compared", error=error.reason)
            await self._clock.sleep(EVERY_S)

    async def compare(self) -> None:
        """Compares what the counters had in the round before, and takes down what they have now.

        Raises:
            MeshError: counters or ledger cannot be reached; what was known before stays, and the round is lost.
        """
        before, self._taken = self._taken, {}
        comparisons = {tenant_id: await self._compare(tenant_id, taken) for tenant_id, taken in before.items()}
        for tenant_id, tenant in list(self._feed.policies.tenants.items()):
            rows = rows_of(tenant, Usage(0, 0, 0), self._clock.now())
            periods = tuple(row for row in rows if row.period is not None)
            try:
                totals = await self._counters.totals(tenant_id, periods)
            except CountersUnknownError:
                continue  # of this one there is nothing to compare; the others' round goes on
            if totals is not None:
                self._taken[tenant_id] = _Taken(periods, totals)
        if before:
            self._tell(comparisons)

    async def _compare(self, tenant_id: str, taken: _Taken) -> Mapping[str, Comparison]:
        totals = taken.totals
        found = {}
        ended: dict[Period, Used] = {}  # two limits of a day are one question to the ledger
        for row in taken.rows:
            if row.period is None or row.name not in totals.counted:
                continue
            since_ms, until_ms = row.period.starts_at_ms, totals.as_of_ms + 1  # what was settled in this very ms, too
            if row.period not in ended:
                ended[row.period] = await self._used(tenant_id, since_ms, until_ms, totals.live)
            used, early = ended[row.period], Used()
            if totals.counted[row.name] < _amount(row, used):
                early = await self._used(tenant_id, since_ms, min(until_ms, since_ms + LONGEST_MS), totals.live)
            counted, recorded = totals.counted[row.name], _amount(row, used)
            found[row.limit] = compare(
                row.limit, totals.as_of_ms, counted, recorded, used.attempts, _amount(row, early)
            )
        return found

    async def _used(self, tenant_id: str, since_ms: int, before_ms: int, without: tuple[str, ...]) -> Used:
        return (await self._sums.used(tenant_id, since_ms, before_ms, without=without)).get("", Used())

    def _tell(self, comparisons: Mapping[str, Mapping[str, Comparison]]) -> None:
        tenants: defaultdict[str, int] = defaultdict(int)
        sums: defaultdict[str, int] = defaultdict(int)
        for tenant_id, of_tenant in comparisons.items():
            known = self.comparisons.get(tenant_id, {})
            for limit, each in of_tenant.items():
                tenants[limit] += each.difference != 0
                sums[limit] += abs(each.difference)
                if each.difference != (known[limit].difference if limit in known else 0):
                    log.warning(
                        "a budget and the ledger differ" if each.difference else "a budget and the ledger agree again",
                        tenant=tenant_id,
                        limit=limit,
                        counted=each.counted,
                        recorded=each.recorded,
                        difference=each.difference,
                    )
        for limit in tenants:
            BUDGETS_DIFFERING.labels(limit).set(tenants[limit])
            BUDGET_DIFFERENCE.labels(limit).set(sums[limit])
        self.comparisons = comparisons


def _amount(row: Row, used: Used) -> int:
    return amounts_of(Usage(0, used.tokens, 0, cost_nano_usd=used.cost_nano_usd))[row.limit]
