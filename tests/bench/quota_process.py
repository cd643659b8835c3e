"""Quota as a process of its own for `make bench-quota`, with a tenant for each kind of limit, and a router's session with it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import SystemClock
from forebay.errors import MeshError
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, Limits, ServiceClass, TenantPolicy, Thresholds
from forebay.quota.domain.policies import Policies
from forebay.quota.domain.prices import Price, PriceTable
from forebay.quota.domain.reservations import Terms
from forebay.quota.policies import PolicyFeed
from forebay.quota.prices import Prices
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.redis_counters import RedisCounters
from forebay.quota.service import Quota
from forebay.quota.servicer import QuotaServicer
from forebay.quota.sweeper import Sweeper
from forebay.quota.usage_sums import InMemorySums
from forebay.rpc.server import RpcServer
from forebay.rpc.session import Outbox, SessionClient
from forebay.telemetry.logs import configure_logs

# As the service is configured by default.
LEASE_S = 30.0
PROMPT, COMPLETION = 10, 10
NANO_USD_PER_TOKEN = 1_000
REQUESTS, PER_SECOND, AT_ONCE = 300, 40, 40
# A hold is rounded up for each item.
BUDGET = REQUESTS * ((PROMPT + COMPLETION) * NANO_USD_PER_TOKEN + 1)

LIMITS = {
    "requests_per_second": PER_SECOND,
    "requests_per_minute": REQUESTS,
    "tokens_per_minute": REQUESTS * (PROMPT + COMPLETION),
    "input_tokens_per_minute": REQUESTS * PROMPT,
    "output_tokens_per_minute": REQUESTS * COMPLETION,
    "concurrent_requests": AT_ONCE,
    "tokens_per_day": REQUESTS * (PROMPT + COMPLETION),
    "daily_budget_nano_usd": BUDGET,
    "monthly_budget_nano_usd": BUDGET,
}


def tenant_id(limit: str) -> str:
    return limit.replace("_", "-")


def policies() -> Policies:
    """Returns one tenant for each limit, one limited by its key, one on its model, and one without any."""
    quiet = Thresholds(warn_percent=1_000)

    def tenant(name: str, limits: Limits, **fields: Any) -> TenantPolicy:
        return TenantPolicy(name, "bench", ServiceClass.GOLD, 1_000, limits=limits, thresholds=quiet, **fields)

    tenants = [tenant(tenant_id(limit), Limits(**{limit: value})) for limit, value in LIMITS.items()]
    tenants += [
        tenant("free", Limits()),
        tenant("by-key", Limits()),
        tenant("by-model", Limits(), model_limits={"m": Limits(tokens_per_minute=LIMITS["tokens_per_minute"])}),
    ]
    keys = [KeyPolicy(f"key-{each.tenant_id}", each.tenant_id, b"h" * 32) for each in tenants]
    keys.append(KeyPolicy("key-by-key", "by-key", b"h" * 32, limits=Limits(requests_per_minute=REQUESTS)))
    return Policies({each.tenant_id: each for each in tenants}, {key.key_id: key for key in keys}, {})


def serve(redis_url: str, ready: Connection) -> None:
    """Runs quota as a process; tells its address."""
    configure_logs("quota", "bench", "error")

    async def run() -> None:
        clock = SystemClock()
        items = ("prompt_tokens", "cached_tokens", "completion_tokens")
        prices = Prices(PriceTable([Price("default", item, NANO_USD_PER_TOKEN * 10**6) for item in items]))
        redis = RedisCounters(redis_url, Terms(lease_ms=round(LEASE_S * 1_000)))
        feed = PolicyFeed(policies(), clock)
        counters = RebuildingCounters(redis, feed, InMemorySums(), clock.now)  # a ledger that knows nobody
        server = RpcServer("127.0.0.1:0")
        quota = Quota(feed, counters, prices, clock.now)
        name = "forebay.api.quota.v1.QuotaService"
        server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaServicer(quota, clock, LEASE_S), name)
        sweeper = Sweeper(counters, clock, LEASE_S, lambda reachable: None)
        async with background(redis.run(), "counters"), background(sweeper.run(), "sweeper"):
            await server.start()
            ready.send(server.address)
            await asyncio.Event().wait()

    uvloop.run(run())


class Session:
    """A router's session with quota."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._router = common_pb2.Peer(id=name, incarnation=time.time_ns() // 1_000)
        self._seq = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        self.client: SessionClient[Any, Any] = SessionClient("quota", stub.Session, quota_pb2.SessionRequest, self)

    def opened(self, outbox: Outbox[quota_pb2.SessionRequest]) -> None:
        outbox.message.hello.router.CopyFrom(self._router)
        outbox.flush()

    def received(self, response: quota_pb2.SessionResponse) -> None:
        for result in (*response.reserves, *response.settles):
            self._answers.pop(result.seq).set_result(result)

    def closed(self, error: MeshError) -> None:
        """Nothing is repeated: whoever waits has lost."""

    async def reserve(self, tenant: str, request_id: str) -> str:
        """Returns the limit that refuses, or nothing when it is held."""
        seq, answer = self._ask()
        self._outbox().message.reserves.add(seq=seq, request=reserve_request(tenant, request_id))
        self._outbox().flush()
        return str((await answer).error.reason)

    async def settle(self, tenant: str, request_id: str) -> None:
        seq, answer = self._ask()
        self._outbox().message.settles.add(seq=seq, request=settle_request(tenant, request_id))
        self._outbox().flush()
        await answer

    def _ask(self) -> tuple[int, asyncio.Future[Any]]:
        seq = next(self._seq)
        self._answers[seq] = asyncio.get_running_loop().create_future()
        return seq, self._answers[seq]

    def _outbox(self) -> Outbox[Any]:
        assert self.client.outbox is not None
        return self.client.outbox


def reserve_request(tenant: str, request_id: str) -> quota_pb2.ReserveRequest:
    return quota_pb2.ReserveRequest(
        request_id=request_id,
        tenant_id=tenant,
        key_id=f"key-{tenant}",
        model="m",
        prompt_tokens=PROMPT,
        max_completion_tokens=COMPLETION,
    )


def settle_request(tenant: str, request_id: str) -> quota_pb2.SettleRequest:
    used = {"prompt_tokens": PROMPT, "completion_tokens": COMPLETION, "started": True, "model": "m"}
    return quota_pb2.SettleRequest(request_id=request_id, tenant_id=tenant, **used)


@asynccontextmanager
async def session(channel: grpc.aio.Channel, name: str) -> AsyncIterator[Session]:
    each = Session(channel, name)
    async with background(each.client.run(), name):
        await each.client.wait_connected()
        yield each
