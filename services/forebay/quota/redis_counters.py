"""The counters in Redis or Valkey: each operation is one script, and calls made in one tick of the loop share one round trip.

The client library is the bottleneck (about 220 µs for a call alone, 50 µs in a pipeline), so calls are gathered in lanes. A
lane sends whatever has gathered while it waited for its replies; a call that finds it idle leaves at the end of its tick, and no
timer is involved. There are several so that this process, the server and the callers have work at the same time instead of in
turn. A request's calls are all in one lane, so its settlement never overtakes its reservation.

Nothing is repeated by itself after a lost connection: whether a script ran is not known then, and who asked knows better whether
to ask again. The connection itself comes back with the next call.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis
from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from forebay.errors import Code, MeshError
from forebay.policy.durations import LEAST_MS, UNKNOWN_MS
from forebay.quota.counters import Pulse
from forebay.quota.domain.edge import Taken
from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.rebuild import Gathered, NeedsRebuildError, Totals
from forebay.quota.domain.reservations import (
    Decision,
    LimitState,
    Observation,
    Order,
    Outcome,
    Reservation,
    Router,
    State,
    Swept,
    Terms,
)
from forebay.quota.redis_failures import RETRY_AFTER_S, reaching_the_store, unavailable
from forebay.redis_client import FAILURES, redis_client
from forebay.telemetry.logs import get_logger

LANES = 2
MAX_WAITING = 20_000
MAX_PIPELINE = 500
# A script runs for as long as it has ids: so many at once keep every other tenant waiting for a few ms at most.
MAX_IDS = 500
NO_EVICTION = "noeviction"
USAGE_CURSOR = "forebay:usage_cursor"
# Keys that one step of a scan looks at.
SCANNED = 1_000
_NEEDS_REBUILD = "NEEDS_REBUILD"
# What a tenant that was lost has of a request: it holds, and it counts for the day and the month.
_LASTING = (Kind.PERIOD, Kind.HOLD)

log = get_logger("counters")


class _Script:
    """One operation's text and its name on the server."""

    def __init__(self, name: str) -> None:
        self.name = name
        folder = Path(__file__).parent / "lua"
        self.text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("tenant", name))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_RESERVE, _TAKE, _SETTLE, _RENEW, _OBSERVE, _SWEEP, _PEEK, _LIST = map(
    _Script, ("reserve", "take", "settle", "renew", "observe", "sweep", "peek", "list")
)
_BEGIN, _RESTORE, _GATHERED, _COMPLETE, _TOTALS = map(_Script, ("begin", "restore", "gathered", "complete", "totals"))


@dataclass(frozen=True, slots=True)
class _Call:
    """One script call that waits to be sent, or for its reply."""

    script: _Script
    arguments: tuple[str | int, ...]
    reply: asyncio.Future[Any]


class _Lane:
    """Calls that are sent in the order in which they were made."""

    def __init__(self) -> None:
        self.waiting: deque[_Call] = deque()
        self.wake = asyncio.Event()


class RedisCounters:
    """A `CounterStore` on one Redis; `run` must be running."""

    def __init__(self, url: str, terms: Terms, now: Callable[[], int] = lambda: 0) -> None:
        """Prepares the client; nothing is connected yet.

        Args:
            url: as `redis_client` takes it.
            terms: how long what lasts.
            now: the present in ms since the epoch, 0 for the server's own time.
        """
        self._terms = terms
        self._now = now
        self._lanes = [_Lane() for _ in range(LANES)]
        self._redis = redis_client(url)

    async def run(self) -> None:
        """Sends what is called, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self._lanes:
                    group.create_task(self._flush(lane))
        finally:
            await self._redis.aclose()

    async def begin(self, tenant_id: str, *, lost: bool) -> bool:
        """Puts an absent tenant's counters there; False if they are."""
        return bool(await self._call(_BEGIN, tenant_id, self._terms.lease_ms, int(lost)))

    async def restore(self, tenant_id: str, order: Order, reserved_at_ms: int, rows: Sequence[Row]) -> bool:
        """Takes in what a router holds of a lost tenant; returns whether it is held now."""
        lasting: list[str | int] = []
        for row in rows:
            if row.kind in _LASTING:
                lasting += [row.name, row.period.name if row.period else "", row.amount]
        reply = await self._call(
            _RESTORE,
            tenant_id,
            self._terms.lease_ms,
            order.request_id,
            order.router.id,
            order.router.incarnation,
            order.prompt_tokens,
            order.max_completion_tokens,
            reserved_at_ms,
            *lasting,
            request_id=order.request_id,
        )
        return bool(reply)

    async def gathered(self, tenant_id: str) -> Gathered | None:
        """Returns what is to be completed, if anything is."""
        reply = await self._call(_GATHERED, tenant_id)
        return Gathered(int(reply[0]), tuple(reply[1:])) if reply else None

    async def complete(self, tenant_id: str, gathered: Gathered, rows: Sequence[Row]) -> bool:
        """Adds the ledger's sums, and makes the tenant ready; False if it was not for this to do."""
        sums = [field for row in rows if row.period for field in (row.name, row.period.name, row.amount)]
        return bool(await self._call(_COMPLETE, tenant_id, gathered.began_ms, len(gathered.request_ids), *sums))

    async def totals(self, tenant_id: str, rows: Sequence[Row]) -> Totals | None:
        """Returns what is used of days and months; None unless the tenant is ready."""
        named = [(row.name, row.period.name) for row in rows if row.period]
        reply = await self._call(_TOTALS, tenant_id, *itertools.chain.from_iterable(named))
        if not reply:
            return None
        used, live = reply[1 : 1 + len(named)], reply[1 + len(named) :]
        counted = {name: int(text) for (name, _), text in zip(named, used, strict=True) if text}
        return Totals(int(reply[0]), tuple(live), counted)

    async def reserve(self, tenant_id: str, order: Order, rows: Sequence[Row]) -> Decision:
        """Takes every row's amount, or nothing."""
        reply = await self._call(
            _RESERVE,
            tenant_id,
            self._terms.lease_ms,
            order.request_id,
            order.router.id,
            order.router.incarnation,
            order.prompt_tokens,
            order.max_completion_tokens,
            UNKNOWN_MS,
            LEAST_MS,
            *itertools.chain.from_iterable(map(_reserve_fields, rows)),
            request_id=order.request_id,
        )
        outcome = Outcome(reply[0])
        told = [(rows[number], used) for number, used in zip(reply[2::2], reply[3::2], strict=True)]
        if outcome is Outcome.REFUSED:
            return Decision(outcome, tuple(row.violation(used) for row, used in told), reply[1])
        return Decision.admitted(told) if outcome is Outcome.ADMITTED else Decision(outcome)

    async def take(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[Taken]:
        """Takes every row's amount, or nothing, without a reservation."""
        reply = await self._call(_TAKE, tenant_id, *itertools.chain.from_iterable(map(_take_fields, rows)))
        return [
            Taken(bool(room), used, resets_in_ms)
            for room, used, resets_in_ms in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        ]

    async def settle(self, tenant_id: str, request_id: str, amounts: Mapping[str, int]) -> bool:
        """Replaces what a reservation took by what was used."""
        used = (field for amount in amounts.items() for field in amount)
        fixed = (request_id, self._terms.remembered_ms)
        return bool(await self._call(_SETTLE, tenant_id, *fixed, *used, request_id=request_id))

    async def renew(
        self, tenant_id: str, router: Router, request_ids: Sequence[str], rows: Sequence[Row]
    ) -> Sequence[str]:
        """Extends leases; returns the request ids of those that are lost."""
        values = [field for row in rows for field in (row.name, _text(row.value))]
        fixed = (self._terms.lease_ms, router.id, router.incarnation, len(rows), *values)
        calls = [
            self._call(_RENEW, tenant_id, *fixed, *request_ids[at : at + MAX_IDS])
            for at in range(0, len(request_ids), MAX_IDS)
        ]
        return [request_id for lost in await asyncio.gather(*calls) for request_id in lost]

    async def observe(self, tenant_id: str, observations: Sequence[Observation]) -> int:
        """Keeps what the ledger says of live reservations; returns how many observations were news."""
        texts = [(observation.request_id, _to_json(observation)) for observation in observations]
        calls = [
            self._call(_OBSERVE, tenant_id, self._terms.lease_ms, *itertools.chain(*texts[at : at + MAX_IDS]))
            for at in range(0, len(texts), MAX_IDS)
        ]
        return sum(await asyncio.gather(*calls))

    async def sweep(self, tenant_id: str, most: int, not_after_ms: int | None = None) -> Swept:
        """Moves at most so many reservations on whose time has come."""
        terms = self._terms
        fixed = (terms.lease_ms, terms.provisional_ms, terms.remembered_ms)
        return Swept(*await self._call(_SWEEP, tenant_id, *fixed, most, _text(not_after_ms)))

    async def tenants(self) -> Sequence[str]:
        """Returns every tenant with something for the sweep, now or later."""
        before, after = _key("*", "due").split("*")
        with reaching_the_store():
            return [
                key.removeprefix(before).removesuffix(after)
                async for key in self._redis.scan_iter(f"{before}*{after}", count=SCANNED)
            ]

    async def peek(self, tenant_id: str, rows: Sequence[Row]) -> Sequence[LimitState]:
        """Returns the state of the limits that exist."""
        reply = await self._call(_PEEK, tenant_id, *itertools.chain.from_iterable(map(_peek_fields, rows)))
        return [
            LimitState(row.subject, row.limit, row.value, used, resets_in_ms)
            for row, used, resets_in_ms in zip(rows, reply[::2], reply[1::2], strict=True)
            if row.value is not None
        ]

    async def reservations(self, tenant_id: str, after: str, most: int) -> Sequence[Reservation]:
        """Returns a page of live reservations in order of their request id."""
        reply = await self._call(_LIST, tenant_id, after, most)
        return [
            _reservation(request_id, json.loads(text), int(reserved_at), int(due))
            for request_id, text, reserved_at, due in zip(*(reply[field::4] for field in range(4)), strict=True)
        ]

    async def usage_cursor(self) -> str:
        """Returns the ledger's cursor as last kept; empty at first."""
        with reaching_the_store():
            return await self._redis.get(USAGE_CURSOR) or ""

    async def keep_usage_cursor(self, cursor: str) -> None:
        """Keeps the cursor."""
        with reaching_the_store():
            await self._redis.set(USAGE_CURSOR, cursor)

    async def ping(self) -> Pulse:
        """Returns what the server says of itself; of a cluster all lives, the latest clock and any policy of eviction."""
        with reaching_the_store():
            if isinstance(self._redis, RedisCluster):
                nodes = {"target_nodes": RedisCluster.PRIMARIES}
                await self._redis.ping(**nodes)
                servers, memories = await self._redis.info("server", **nodes), await self._redis.info("memory", **nodes)
                times: Any = await self._redis.time(**nodes)
                life = ",".join(sorted(server["run_id"] for server in servers.values()))
                evicts = max(_evicts(memory) for memory in memories.values())
                return Pulse(life, self._now() or max(map(_ms, times.values())), evicts)
            # A server that still loads its data refuses a ping, though not to tell of itself.
            about = self._redis.pipeline(transaction=False).ping().info("server").info("memory").time()
            _, server, memory, time = await about.execute()
        return Pulse(str(server["run_id"]), self._now() or _ms(time), _evicts(memory))

    def _call(
        self, script: _Script, tenant_id: str, *arguments: str | int, request_id: str = ""
    ) -> asyncio.Future[Any]:
        """Puts a call into the lane of its request or, when it is about several, of its tenant."""
        lane = self._lanes[hash(request_id or tenant_id) % LANES]
        if len(lane.waiting) >= MAX_WAITING:
            raise MeshError(
                Code.UNAVAILABLE,
                "QUOTA_STORE_OVERLOADED",
                f"{MAX_WAITING} calls wait for the counters; try again",
                retry_after=RETRY_AFTER_S,
            )
        keys = (_key(tenant_id, part) for part in ("counters", "reservations", "settled", "due"))
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lane.waiting.append(_Call(script, (4, *keys, self._now(), *arguments), reply))
        lane.wake.set()
        return reply

    async def _flush(self, lane: _Lane) -> None:
        while True:
            await lane.wake.wait()
            batch = [lane.waiting.popleft() for _ in range(min(len(lane.waiting), MAX_PIPELINE))]
            if not lane.waiting:
                lane.wake.clear()
            await self._send(batch)

    async def _send(self, batch: Sequence[_Call]) -> None:
        try:
            replies = await self._execute(batch)
            unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                for script in {batch[at].script for at in unknown}:
                    await self._redis.script_load(script.text)
                for at, reply in zip(unknown, await self._execute([batch[at] for at in unknown]), strict=True):
                    replies[at] = reply
        except FAILURES as error:
            replies = [error] * len(batch)
        for call, reply in zip(batch, replies, strict=True):
            if call.reply.done():  # its caller was cancelled
                continue
            if isinstance(reply, Exception):
                if isinstance(reply, ResponseError):  # the server is there and refuses: a fault that somebody must see
                    log.error("script failed", script=call.script.name, error=str(reply))
                call.reply.set_exception(unavailable(reply))
            elif reply == _NEEDS_REBUILD:
                call.reply.set_exception(NeedsRebuildError())
            else:
                call.reply.set_result(reply)

    async def _execute(self, batch: Sequence[_Call]) -> list[Any]:
        if isinstance(self._redis, RedisCluster):
            pipeline = self._redis.pipeline(transaction=False)
            for call in batch:
                pipeline.execute_command("EVALSHA", call.script.sha, *call.arguments)
            return list(await pipeline.execute(raise_on_error=False))
        # The library's own pipeline packs commands in Python, which costs this process a quarter of what a reservation does.
        commands: list[Any] = [("EVALSHA", call.script.sha, *call.arguments) for call in batch]
        packed = b"".join(map(hiredis.pack_command, commands))
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(packed)
            replies = [await _reply(connection) for _ in batch]
            if any(isinstance(reply, ReadOnlyError) for reply in replies):  # as `redis_client` has it for other calls
                await connection.disconnect()
            return replies
        finally:
            await pool.release(connection)


def _ms(time: Sequence[int]) -> int:
    """Returns ms since the epoch from what a server says of its time."""
    seconds, micros = time
    return seconds * 1000 + micros // 1000


def _evicts(memory: Mapping[str, Any]) -> str:
    """Returns the server's policy of eviction; empty if it evicts nothing, or does not say."""
    policy = str(memory.get("maxmemory_policy", NO_EVICTION))
    return "" if policy == NO_EVICTION else policy


async def _reply(connection: Any) -> Any:
    """Returns the next reply; the server's refusal of one call is its reply."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _key(tenant_id: str, part: str) -> str:
    return f"forebay:{{{tenant_id}}}:{part}"


def _to_json(observation: Observation) -> str:
    return json.dumps(
        {
            "position": observation.position,
            "amounts": {limit: str(amount) for limit, amount in observation.amounts.items()},
            "final": observation.final,
        }
    )


def _reserve_fields(row: Row) -> tuple[str | int, ...]:
    detail, ends_at_ms = _detail(row)
    return (row.name, row.kind.value, _text(row.value), row.amount, detail, ends_at_ms, _text(row.notice_at))


def _take_fields(row: Row) -> tuple[str | int, ...]:
    return (row.name, row.kind.value, _text(row.value), row.amount, _detail(row)[0])


def _peek_fields(row: Row) -> tuple[str | int, ...]:
    return (row.name, row.kind.value, _text(row.value), *_detail(row))


def _detail(row: Row) -> tuple[str | int, int]:
    """Returns what the scripts need to know of a rate or a period beside its name, and when the period ends."""
    if row.period is not None:
        return row.period.name, row.period.ends_at_ms
    return (row.drain if row.kind is Kind.RATE else ""), 0


def _text(value: int | None) -> str | int:
    return "" if value is None else value


def _reservation(request_id: str, stored: Mapping[str, Any], reserved_at_ms: int, due_ms: int) -> Reservation:
    router = Router(stored["router"], int(stored["incarnation"]))
    order = Order(request_id, router, stored["prompt"], stored["max"])
    return Reservation(order, State(stored["state"]), reserved_at_ms, due_ms)
