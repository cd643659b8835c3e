"""Ends what nobody ends, and knows whether the counters can be reached.

While quota or the counters were away no router could renew, and leases lapsed through no fault of theirs: after either has come
back nothing is swept for one lease, in which every living router renews what it holds (rule P4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.counters import CounterStore
from forebay.quota.policies import PolicyFeed
from forebay.telemetry.logs import get_logger

PING_S = 1.0
# Leases last this many rounds of the sweeper.
ROUNDS_PER_LEASE = 6
TENANTS_AT_ONCE = 256
MOST_AT_ONCE = 200

log = get_logger("sweeper")


class Sweeper:
    """Visits every tenant now and then, quiet ones too; `reachable` is told after each look at the counters."""

    def __init__(
        self,
        feed: PolicyFeed,
        counters: CounterStore,
        clock: Clock,
        lease_s: float,
        reachable: Callable[[bool], None],
    ) -> None:
        self._feed = feed
        self._counters = counters
        self._clock = clock
        self._lease_s = lease_s
        self._reachable = reachable

    async def run(self) -> None:
        """Looks after the counters until cancelled."""
        next_sweep = self._clock.monotonic() + self._lease_s
        trouble = ""
        while True:
            before = trouble
            try:
                await self._counters.ping()
                if self._clock.monotonic() >= next_sweep:
                    await self._sweep()
                    next_sweep = self._clock.monotonic() + self._lease_s / ROUNDS_PER_LEASE
                trouble = ""
            except MeshError as error:
                next_sweep = self._clock.monotonic() + self._lease_s
                trouble = error.message
            if trouble != before:
                log.warning("counters", trouble=trouble or "over")
            self._reachable(not trouble)
            await self._clock.sleep(PING_S)

    async def _sweep(self) -> None:
        tenants = list(self._feed.policies.tenants)
        for at in range(0, len(tenants), TENANTS_AT_ONCE):
            await asyncio.gather(*map(self._sweep_tenant, tenants[at : at + TENANTS_AT_ONCE]))

    async def _sweep_tenant(self, tenant_id: str) -> None:
        while True:
            swept = await self._counters.sweep(tenant_id, MOST_AT_ONCE)
            if swept.expired:
                log.warning("leases expired", tenant=tenant_id, reservations=swept.expired)
            if swept.total < MOST_AT_ONCE:
                return
