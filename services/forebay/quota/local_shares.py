"""Tells routers what they may admit by themselves while they cannot reach quota, for tenants that fail open.

`domain.shares` decides how large each router's part is. Every few seconds, and whenever a part is to change, each router is told
its part of every limit in numbers that need no more arithmetic. It acknowledges, and until then is told nothing else. What may be
given out is in a file before anybody is told, so that the next life of the process counts it, too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from forebay.api.quota.v1 import quota_pb2
from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.policy.limits import LIMITS, Kind, Usage
from forebay.policy.model import KeyPolicy, LossPolicy, TenantPolicy
from forebay.quota.counters import CounterStore
from forebay.quota.domain.canary import effective_limits
from forebay.quota.domain.limits import BUDGETS, Row, rows_of
from forebay.quota.domain.prices import Dearest
from forebay.quota.domain.rebuild import CountersUnknownError
from forebay.quota.domain.shares import NOTHING, Shares
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.rpc.status import from_pb_duration, to_pb_duration
from forebay.telemetry.logs import get_logger

# How old what routers know of budgets can be.
REFRESH_S = 5.0
# A router that is there acknowledges within milliseconds.
CLAIM_WITHIN_S = 0.5
# Tenants that can be told of, the first in order of their id, and limits of all of them, which one message has room for; all
# others fail closed at routers.
MAX_TENANTS = 1_000
MAX_LIMITS = 40_000
TENANTS_AT_ONCE = 200

PERIODS = {limit.name for limit in LIMITS if limit.kind is Kind.PERIOD}

_NOTHING = Usage(0, 0, 0)

log = get_logger("local_shares")


@dataclass(slots=True, eq=False)
class Seat:
    """A router's session.

    Attributes:
        send: puts a message into the session.
        parts: as told last; None before.
        number: of the message told last.
        waiting: whether it is not acknowledged.
    """

    router: str
    send: Callable[[quota_pb2.LocalShare], None]
    parts: int | None = None
    number: int = 0
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class _Left:
    """What a tenant's limits have for everybody without the counters."""

    tenant_id: str
    limits: Sequence[tuple[str, str, int]]  # subject, limit, value
    dearest: Dearest


class LocalShares:
    """The routers of this replica and their parts; `run` must be running."""

    def __init__(
        self,
        feed: PolicyFeed,
        counters: CounterStore,
        prices: Prices,
        clock: Clock,
        *,
        replicas: int,
        lease_s: float,
        global_limit: int,
        file: Path,
    ) -> None:
        """Takes up what a former life has given out.

        Args:
            feed: the policies in force.
            counters: say what is left of days and months.
            prices: what requests cost at most.
            clock: for the time that a part holds.
            replicas: how many processes of quota share each limit.
            lease_s: for how long a router may use its part.
            global_limit: requests a second of all tenants; 0 for no limit.
            file: where what is given out is kept.
        """
        self._feed = feed
        self._counters = counters
        self._prices = prices
        self._clock = clock
        self._replicas = replicas
        self._lease_s = lease_s
        self._global_limit = global_limit
        self._file = file
        found: dict[str, int] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        self._kept = found
        self._shares = Shares(lease_s, found, clock.monotonic())
        self._away_since = 0.0
        self._seats: dict[str, Seat] = {}
        self._left: list[_Left] = []
        self._told: list[_Left] = []
        self._left_of_periods: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._keeping = asyncio.Lock()

    async def run(self) -> None:
        """Tells routers, until cancelled."""
        refreshed_at = -REFRESH_S
        while True:
            due = self._clock.monotonic() - refreshed_at >= REFRESH_S
            if due:
                await self._refresh()
                refreshed_at = self._clock.monotonic()
            await self._tell(everybody=due)
            waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(self._clock.sleep(REFRESH_S))]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            self._wake.clear()

    def join(self, router: str, held: quota_pb2.LocalShareHeld, send: Callable[[quota_pb2.LocalShare], None]) -> Seat:
        """A router has opened a session, with what it still holds."""
        self._shares.join(router, held.parts, _spent_ago_s(held), self._clock.monotonic())
        seat = self._seats[router] = Seat(router, send)
        self._wake.set()
        return seat

    def held(self, seat: Seat, held: quota_pb2.LocalShareHeld) -> None:
        """A router acknowledges what it was told."""
        if self._seats.get(seat.router) is seat and seat.waiting and held.number == seat.number:
            seat.waiting = False
            self._shares.acknowledge(seat.router, held.parts, _spent_ago_s(held), self._clock.monotonic())
            self._moved.set()
            self._wake.set()

    def leave(self, seat: Seat) -> None:
        """A router's session is over."""
        if self._seats.get(seat.router) is seat:
            del self._seats[seat.router]
            self._shares.leave(seat.router)
            self._moved.set()
            self._wake.set()

    async def claim(self) -> Fraction:
        """Returns what part this process may admit by itself: the counters are away, and routers give theirs back."""
        if not self._shares.away:
            self._shares.away, self._away_since = True, self._clock.monotonic()
            self._wake.set()
        try:
            async with asyncio.timeout(CLAIM_WITHIN_S - (self._clock.monotonic() - self._away_since)):
                while any(seat.waiting or seat.parts != 0 for seat in self._seats.values()):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            pass  # what a silent router may still admit is its own
        part = self._shares.claim(self._clock.monotonic())
        return part if await self._keep() else NOTHING

    def left(self, row: Row) -> int:
        """Returns what a day's or a month's limit had left when the counters were last there; 0 when nobody knows."""
        return self._left_of_periods.get(row.name, 0)

    async def _refresh(self) -> None:
        now_s = self._clock.now()
        policies = self._feed.policies
        tenants = sorted(
            (each for each in policies.tenants.values() if each.loss_policy is LossPolicy.FAIL_OPEN),
            key=lambda each: each.tenant_id,
        )[:MAX_TENANTS]
        keys: dict[str, list[KeyPolicy]] = {tenant.tenant_id: [] for tenant in tenants}
        for key in policies.keys.values():
            if key.tenant_id in keys and not key.revoked:
                keys[key.tenant_id].append(key)
        known = {each.tenant_id: each for each in self._left}
        left: list[_Left | None] = []
        unknown: list[str] = []

        async def left_of(tenant: TenantPolicy) -> _Left | None:
            try:
                return await self._left_of(tenant, keys[tenant.tenant_id], now_s)
            except CountersUnknownError:  # for this one the counters are away, and what was said of it stands
                unknown.append(tenant.tenant_id)
                return known.get(tenant.tenant_id)

        try:
            await self._counters.ping()
            for at in range(0, len(tenants), TENANTS_AT_ONCE):
                left += await asyncio.gather(*map(left_of, tenants[at : at + TENANTS_AT_ONCE]))
        except MeshError:
            return  # what was said last stands; whoever finds the counters away claims
        self._left = [each for each in left if each is not None]
        counts = itertools.accumulate(len(each.limits) for each in self._left)
        self._told = [each for each, count in zip(self._left, counts, strict=True) if count <= MAX_LIMITS]
        self._left_of_periods = {
            f"{subject}/{limit}": value
            for each in self._left
            for subject, limit, value in each.limits
            if limit in PERIODS
        }
        self._shares.away = self._shares.away and bool(unknown)

    async def _left_of(self, tenant: TenantPolicy, keys: Iterable[KeyPolicy], now_s: float) -> _Left | None:
        rows = _all_rows(effective_limits(tenant, now_s), keys, now_s)
        table = self._prices.table
        if table is None and any(row.limit in BUDGETS for row in rows):
            return None
        periods = [row for row in rows if row.kind is Kind.PERIOD]
        used: Mapping[str, int] = {}
        if periods:
            states = await self._counters.peek(tenant.tenant_id, periods)
            used = {f"{state.subject}/{state.limit}": state.used for state in states}
        limits = [(row.subject, row.limit, max(0, (row.value or 0) - used.get(row.name, 0))) for row in rows]
        if self._global_limit:
            limits.append(("mesh", "requests_per_second", self._global_limit))
        return _Left(tenant.tenant_id, limits, table.dearest(tenant, now_s) if table is not None else Dearest())

    async def _tell(self, *, everybody: bool) -> None:
        now = self._clock.monotonic()
        told: list[Seat] = []
        for seat in self._seats.values():
            if not seat.waiting:
                parts = self._shares.offer(seat.router, now)
                if everybody or parts != seat.parts:
                    self._shares.tell(seat.router, parts)
                    seat.parts, seat.waiting = parts, True
                    seat.number += 1
                    told.append(seat)
        kept = await self._keep()
        for seat in told:
            if kept:
                seat.send(self._share(seat))
            else:
                seat.parts, seat.waiting = None, False

    async def _keep(self) -> bool:
        """Keeps what may be given out, which changes only when routers or the counters come and go; False if it cannot."""
        async with self._keeping:
            parts = self._shares.parts()
            try:
                if parts != self._kept:
                    await asyncio.to_thread(_write, self._file, json.dumps(parts))
            except OSError as error:
                log.error("nothing is given out", path=str(self._file), error=error.strerror)
                return False
            self._kept = parts
            return True

    def _share(self, seat: Seat) -> quota_pb2.LocalShare:
        parts = seat.parts or 0
        share = quota_pb2.LocalShare(number=seat.number, parts=parts, holds_for=to_pb_duration(self._lease_s))
        for left in self._told if parts else ():
            allowance = share.allowances.add(
                tenant_id=left.tenant_id,
                nano_usd_per_request=left.dearest.nano_usd_per_request,
                nano_usd_per_million_prompt_tokens=left.dearest.nano_usd_per_million_prompt_tokens,
                nano_usd_per_million_completion_tokens=left.dearest.nano_usd_per_million_completion_tokens,
            )
            for subject, limit, value in left.limits:
                allowance.limits.add(subject=subject, limit=limit, value=value // self._replicas // parts)
        return share


def _all_rows(tenant: TenantPolicy, keys: Iterable[KeyPolicy], now_s: float) -> list[Row]:
    """Returns every limit that exists of a tenant, on each of its models and by each of its keys."""
    rows = list(rows_of(tenant, _NOTHING, now_s))
    for model in tenant.model_limits:
        rows += rows_of(tenant, _NOTHING, now_s, model=model)
    for key in keys:
        rows += rows_of(tenant, _NOTHING, now_s, key)
    return list({row.name: row for row in rows if row.value is not None}.values())


def _spent_ago_s(held: quota_pb2.LocalShareHeld) -> float | None:
    return from_pb_duration(held.admitted_ago) if held.HasField("admitted_ago") else None


def _write(file: Path, text: str) -> None:
    """Replaces a file; durable on return."""
    following = file.with_suffix(".next")
    with following.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    following.replace(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
