"""Ends what nobody ends, and knows whether the counters can be reached.

While quota or the counters were away no router could renew, and leases lapsed through no fault of theirs: after either has come
back nothing is swept for one lease, in which every living router renews what it holds (rule P4). A short absence of the counters
falls between two looks at them and is known by their new life. A step forward of the counters' clock ends leases in the same way,
and is known by this process's own monotonic clock. Each sweep says what the counters' clock can read at most, so that one that
comes between the step and the next look moves nothing on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.quota.counters import CounterStore
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.telemetry.logs import get_logger

PING_S = 1.0
# Leases last this many rounds of the sweeper.
ROUNDS_PER_LEASE = 6
TENANTS_AT_ONCE = 256
MOST_AT_ONCE = 200
# By which two clocks may run apart between two looks, and by which an unnoticed step may shorten a lease.
TOLERANCE_MS = 1_000

log = get_logger("sweeper")


class Sweeper:
    """Visits every tenant that holds something, quiet ones and former ones too; `reachable` is told after each look."""

    def __init__(self, counters: CounterStore, clock: Clock, lease_s: float, reachable: Callable[[bool], None]) -> None:
        self._counters = counters
        self._clock = clock
        self._lease_s = lease_s
        self._reachable = reachable
        # What the counters' clock is ahead of this process's monotonic one at most, in ms; before the first look, not known.
        self._ahead_ms: float | None = None

    async def run(self) -> None:
        """Looks after the counters until cancelled."""
        life = trouble = evicts = ""
        next_sweep = 0.0
        while True:
            before = trouble
            try:
                asked_at = self._clock.monotonic()
                pulse = await self._counters.ping()
                stepped = pulse.clock_ms > self._latest_ms()
                self._ahead_ms = pulse.clock_ms - asked_at * 1000
                known, life = life, pulse.life
                if pulse.evicts not in ("", evicts):
                    log.warning(
                        "the counters' server may evict keys, and a tenant that loses one is refused for a minute; "
                        "set its maxmemory-policy to noeviction",
                        policy=pulse.evicts,
                    )
                evicts = pulse.evicts
                if stepped:
                    log.warning("the counters' clock has stepped forward; nothing is swept for one lease")
                if life != known or stepped:
                    next_sweep = self._clock.monotonic() + self._lease_s
                elif self._clock.monotonic() >= next_sweep:
                    await self._sweep()
                    next_sweep = self._clock.monotonic() + self._lease_s / ROUNDS_PER_LEASE
                trouble = ""
            except MeshError as error:
                life, trouble = "", error.message
            if trouble != before:
                log.warning("counters", trouble=trouble or "over")
            self._reachable(not trouble)
            await self._clock.sleep(PING_S)

    def _latest_ms(self) -> int:
        """Returns what the counters' clock reads at most now, unless it has stepped forward since the last look."""
        if self._ahead_ms is None:
            return sys.maxsize
        return round(self._clock.monotonic() * 1000 + self._ahead_ms) + TOLERANCE_MS

    async def _sweep(self) -> None:
        tenants = await self._counters.tenants()
        for at in range(0, len(tenants), TENANTS_AT_ONCE):
            await asyncio.gather(*map(self._sweep_tenant, tenants[at : at + TENANTS_AT_ONCE]))

    async def _sweep_tenant(self, tenant_id: str) -> None:
        try:
            # Until nothing moves: what has just expired is due again at once if its usage is known.
            while (swept := await self._counters.sweep(tenant_id, MOST_AT_ONCE, self._latest_ms())).total:
                if swept.expired or swept.settled:
                    log.warning("reservations swept", tenant=tenant_id, expired=swept.expired, settled=swept.settled)
        except CountersUnknownError:
            pass  # the counters are there; of this one, nothing is moved on before it is rebuilt
