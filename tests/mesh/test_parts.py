"""Both the counters and quota go, one after the other: what one admitted by itself is not admitted again by the other."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import SystemClock
from forebay.errors import MeshError
from forebay.journal import Journal
from forebay.lifecycle import background
from forebay.policy.model import KeyPolicy, ServiceClass, TenantPolicy
from forebay.quota.config import QuotaConfig
from forebay.quota.main import build
from forebay.router.access import Caller
from forebay.router.client import GatheredAnswer
from forebay.router.domain.ask import Ask, Chat, Sampling
from forebay.router.local_admission import LocalAdmission
from forebay.router.quota_link import QuotaLink
from forebay.router.request import Payload, Request
from forebay.rpc.client import connect
from forebay.testing.valkey import ValkeyServer, free_port

pytestmark = pytest.mark.slow

PER_MINUTE = 8
CALLER = Caller(TenantPolicy("open", "enterprise", ServiceClass.GOLD, 1), KeyPolicy("k1", "open", b""))


class Router:
    """A router's link to quota, and nothing else of it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        clock, me = SystemClock(), common_pb2.Peer(id=name, incarnation=1)
        self.channel = connect(address, caller=name)
        self.local = LocalAdmission(Journal(folder / f"{name}.journal"), me, clock)
        self.link = QuotaLink(self.channel, me, {}, clock, wait_s=4.0, local=self.local)

    async def admitted(self, count: int) -> int:
        return sum([await self.outcome() == "admitted" for _ in range(count)])

    async def outcome(self) -> str:
        payload = Payload("m", [1, 2, 3], Sampling(max_tokens=4, seed=7), 4, [], 32)
        ask = Ask("m", Chat(()), payload.sampling)
        request = Request(
            secrets.token_hex(16),
            CALLER,
            ask,
            payload,
            GatheredAnswer(),
            admitted_at=0.0,
            deadline_at=SystemClock().monotonic() + 60,
            max_attempts=1,
        )
        try:
            await self.link.reserve(request)
        except MeshError as error:
            return error.reason
        return "admitted"


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


class World:
    """Quota, with a tenant that fails open, and two routers."""

    def __init__(self, valkey: ValkeyServer, folder: Path) -> None:
        self.valkey = valkey
        self.folder = folder
        self.config = QuotaConfig(
            id="quota-1",
            listen=f"127.0.0.1:{free_port()}",
            redis_url=valkey.url,
            policy_url=f"sqlite:///{folder}/policies.sqlite",
            journal_file=folder / "journal",
            pepper="a pepper for tests",
        )
        self.routers = [Router(name, self.config.listen, folder) for name in ("router-1", "router-2")]

    @asynccontextmanager
    async def quota(self) -> AsyncIterator[None]:
        """Runs quota for the block."""
        async with AsyncExitStack() as stack:
            server = await build(self.config, stack)
            await server.start()
            stack.push_async_callback(server.drain, 0)
            yield

    async def make_tenant(self) -> None:
        limits = quota_pb2.Limits(requests_per_minute=PER_MINUTE)
        policy = quota_pb2.TenantPolicy(
            tenant_id="open", plan="enterprise", loss_policy=quota_pb2.LOSS_POLICY_FAIL_OPEN, limits=limits
        )
        mask = FieldMask(paths=["loss_policy", "limits.requests_per_minute"])
        async with connect(self.config.listen, caller="test") as channel:
            stub: Any = quota_pb2_grpc.TenantServiceStub(channel)
            await stub.CreateTenant(
                quota_pb2.CreateTenantRequest(request_id=secrets.token_hex(16), tenant=policy, overrides=mask)
            )

    async def divided(self) -> None:
        """Returns once both routers have their halves."""
        async with asyncio.timeout(60):
            file, halves = self.folder / "journal.shares", {"router-1": 2, "router-2": 2}
            while not file.exists() or json.loads(file.read_text()) != halves or not self._offered():
                await asyncio.sleep(0.01)

    def _offered(self) -> bool:
        return all(router.local.offers("open") and router.link.session.connected for router in self.routers)


@pytest.fixture
async def world(own_valkey: ValkeyServer, tmp_path: Path) -> AsyncIterator[World]:
    world = World(own_valkey, tmp_path)
    async with world.quota():
        await world.make_tenant()
    async with AsyncExitStack() as stack:
        for router in world.routers:
            stack.push_async_callback(router.channel.close)
            await stack.enter_async_context(background(router.link.session.run(), "quota"))
        yield world


async def test_the_counters_go_and_then_quota(world: World) -> None:
    async with world.quota():
        await world.divided()
        world.valkey.kill()
        assert sum([await router.admitted(PER_MINUTE) for router in world.routers]) == PER_MINUTE
    outcomes = await asyncio.gather(*(router.outcome() for router in world.routers))
    assert outcomes == ["QUOTA_UNAVAILABLE"] * 2


async def test_quota_goes_and_then_the_counters(world: World) -> None:
    async with world.quota():
        await world.divided()
    assert [await router.admitted(PER_MINUTE) for router in world.routers] == [PER_MINUTE // 2] * 2
    world.valkey.kill()
    async with world.quota():
        for router in world.routers:
            await router.link.session.wait_connected()
            assert await router.outcome() == "QUOTA_STORE_UNAVAILABLE"
