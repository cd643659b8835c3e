"""Who is served by how much in the real mesh: five services over loopback, and simulated engines that the test steps.

All figures are service, in weighted tokens, as DescribePools tells it; none is a time. Shares are promised among those that have
requests waiting, so engines compute only while all who flood have: a mesh on a slow machine takes longer and shares alike.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.client import ForebayClient
from forebay.rpc.client import connect
from forebay.testing.mesh import Mesh
from forebay.worker.domain.step_cost import FREE
from forebay.worker.engine import Capacity
from forebay.worker.simulated_engine import SimulatedEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("fairness live")]

CAPACITY = Capacity(
    kv_tokens=768, block_tokens=16, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=128, max_adapters=0
)
OUTSTANDING = 120
WAITING = OUTSTANDING // 4  # at least, of each who floods, while engines compute
STEPS = 8  # between two looks; they end no more requests than WAITING
STEP_S = 0.005  # at least, so that the scheduler is told of each eight or ten
PATIENCE_S = 300  # with what never holds
OUTPUT_TOKENS = (8, 12, 16, 20, 24)
PROMPT_WORDS = 50
NO_LIMITS = {
    "requests_per_second": 10**9, "requests_per_minute": 10**9, "tokens_per_minute": 10**9, "concurrent_requests": 10**6,
}  # fmt: skip

Pool = scheduler_pb2.DescribePoolsResponse.Pool


def tenant(service_class: str, weight: float = 1, **fields: Any) -> dict[str, Any]:
    return {"plan": "enterprise", "service_class": service_class, "weight": weight, "limits": NO_LIMITS, **fields}


class Floods:
    """Clients that always have requests waiting, what the scheduler says of them, and the engines that serve them."""

    def __init__(
        self, mesh: Mesh, stub: scheduler_pb2_grpc.SchedulerServiceStub, engines: Sequence[SimulatedEngine]
    ) -> None:
        self._mesh = mesh
        self._stub = stub
        self._engines = engines
        self._flooding: dict[str, list[asyncio.Task[None]]] = {}
        self.answered: Counter[str] = Counter()

    async def begin(self, *names: str) -> None:
        """Has tenants ask without end; returns once many requests of each wait."""
        for name in names:
            client = ForebayClient(self._mesh.address, self._mesh.keys[name])
            self._flooding[name] = [
                asyncio.create_task(self._ask_on(name, client, index)) for index in range(OUTSTANDING)
            ]
        await self.seen(self._all_wait)

    async def end(self, name: str) -> None:
        """Has a tenant leave, with all that it has waiting and running."""
        for task in self._flooding[name]:
            task.cancel()
        await asyncio.wait(self._flooding.pop(name))
        await self.seen(lambda pools: not any(flow.tenant_id == name for pool in pools for flow in pool.flows))

    async def end_all(self) -> None:
        for name in list(self._flooding):
            await self.end(name)

    async def pools(self) -> list[Pool]:
        for tasks in self._flooding.values():
            for task in tasks:
                if task.done():
                    task.result()
        return list((await self._stub.DescribePools(scheduler_pb2.DescribePoolsRequest())).pools)

    async def seen(self, holds: Callable[[list[Pool]], bool]) -> list[Pool]:
        """Returns the pools once it holds, while engines stand still."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(pools := await self.pools()):
                await asyncio.sleep(STEP_S)
        return pools

    async def until(self, holds: Callable[[list[Pool]], bool]) -> list[Pool]:
        """Has engines compute until it holds, and returns the pools; all who flood have requests waiting."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(pools := await self.seen(self._all_wait)):
                await self.compute()
        return pools

    async def all_run(self) -> list[Pool]:
        """Has engines compute until nothing that is granted is still on its way, and returns the pools."""
        while True:
            pools = await self.seen(lambda pools: in_flight(pools) == self._held() and self._all_wait(pools))
            if not any(engine.state().waiting for engine in self._engines):
                return pools
            await self.compute(1)

    async def compute(self, steps: int = STEPS) -> None:
        """Has engines compute; all who flood must have requests waiting."""
        for _ in range(steps):
            for engine in self._engines:
                engine.step()
            await asyncio.sleep(STEP_S)

    def _held(self) -> int:
        states = [engine.state() for engine in self._engines]
        return sum(state.running + state.waiting for state in states)

    def _all_wait(self, pools: list[Pool]) -> bool:
        waiting = Counter[str]()
        for pool in pools:
            for flow in pool.flows:
                waiting[flow.tenant_id] += flow.queued
        return all(waiting[name] > WAITING for name in self._flooding)

    async def until_served(self, tokens: int) -> dict[str, float]:
        """Returns the service of each tenant that waits or runs, once all pools together have given so much."""
        pools = await self.until(lambda pools: sum(pool.service_tenths for pool in pools) >= 10 * tokens)
        return service(pools)

    async def _ask_on(self, name: str, client: ForebayClient, index: int) -> None:
        for number in itertools.count(index):
            # All tenants ask for the same mix of lengths; of one length alone, whole cohorts would begin and end together.
            tokens = OUTPUT_TOKENS[number % len(OUTPUT_TOKENS)]
            # No two prompts begin alike, so that none is cached.
            prompt = f"{name} {index} {number}" + " and so on" * (PROMPT_WORDS // 3)
            await client.generate(prompt, max_tokens=tokens, ignore_eos=True)
            self.answered[name] += 1


def in_flight(pools: list[Pool]) -> int:
    """Returns how many requests are granted and have not ended, as far as the scheduler knows."""
    return sum(worker.in_flight for pool in pools for worker in pool.workers)


def service(pools: list[Pool]) -> dict[str, float]:
    """Returns what each tenant received, in weighted tokens, over all pools."""
    received: Counter[str] = Counter()
    for pool in pools:
        for flow in pool.flows:
            received[flow.tenant_id] += flow.service_tenths
    return {name: tenths / 10 for name, tenths in received.items()}


def shares(amounts: dict[str, float]) -> dict[str, float]:
    """Returns the part of the sum that each has."""
    return {name: amount / sum(amounts.values()) for name, amount in sorted(amounts.items())}


def shown(amounts: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:.2%}" for name, amount in shares(amounts).items())


@asynccontextmanager
async def floods(
    directory: Path,
    redis_url: str,
    tenants: dict[str, dict[str, Any]],
    capacity: Capacity = CAPACITY,
    **pools: bool,
) -> AsyncIterator[Floods]:
    """A mesh with one worker in the shared pool, and one in each of `pools`, which lend if so said."""
    settings = {
        "quota": {"global_requests_per_second": 0},
        "scheduler": {"pools": [{"name": name, "lends": lends} for name, lends in pools.items()]},
    }
    engines = {name: SimulatedEngine(capacity, FREE, manual=True) for name in pools}
    shared = SimulatedEngine(capacity, FREE, manual=True)
    async with (
        Mesh(directory, redis_url, shared, tenants, pools=engines, settings=settings) as mesh,
        connect(mesh.addresses["scheduler"], caller="test") as channel,
    ):
        world = Floods(mesh, scheduler_pb2_grpc.SchedulerServiceStub(channel), [shared, *engines.values()])
        try:
            yield world
        finally:
            await world.end_all()


async def test_weights_3_to_1_and_one_that_comes_late(
    tmp_path: Path, redis_url: str, record_property: Callable[[str, object], None]
) -> None:
    tenants = {"heavy": tenant("silver", 3), "light": tenant("silver", 1), "late": tenant("silver", 1)}
    async with floods(tmp_path, redis_url, tenants) as world:
        await world.begin("heavy", "light")
        both = service(await world.pools())
        first = await world.until_served(round(sum(both.values())) + 50 * CAPACITY.kv_tokens)
        gained = {name: first[name] - both[name] for name in both}
        record_property("measured", f"3:1 after {sum(gained.values()):,.0f} weighted tokens: {shown(gained)}")
        assert gained["heavy"] / gained["light"] == pytest.approx(3, rel=0.03)

        await world.begin("late")
        began = await world.until_served(round(sum(first.values())))
        came = await world.until(
            lambda pools: any(f.tenant_id == "late" and f.in_flight for p in pools for f in p.flows)
        )
        waited = sum(service(came).values()) - sum(first.values())
        then = await world.until_served(round(sum(service(came).values())) + 26 * CAPACITY.kv_tokens)
        gained = {name: then[name] - began.get(name, 0.0) for name in tenants}
        record_property("measured", f"3:1:1 from then on: {shown(gained)}; the first of it after {waited:,.0f}")
        # Served at once: what it had to wait for would be missing here. No credit: had idleness earned it any, it would
        # have caught up on the other of its weight.
        assert gained["late"] / gained["light"] == pytest.approx(1, rel=0.05)
        assert gained["heavy"] / gained["light"] == pytest.approx(3, rel=0.05)
        assert then["late"] < then["light"] / 2


async def test_classes_share_50_30_20_and_who_waits_alone_has_all(
    tmp_path: Path, redis_url: str, record_property: Callable[[str, object], None]
) -> None:
    few = replace(CAPACITY, max_num_seqs=4)
    classes = ("gold", "silver", "bronze")
    async with floods(tmp_path, redis_url, {name: tenant(name) for name in classes}, few) as world:
        await world.begin(*classes)
        before, answered = service(await world.pools()), world.answered.total()
        await world.until(lambda _: world.answered.total() >= answered + 200)
        after = service(await world.pools())
        gained = {name: after[name] - before[name] for name in classes}
        record_property("measured", f"over 200 requests: {shown(gained)}")
        for name, share in (("gold", 0.5), ("silver", 0.3), ("bronze", 0.2)):
            assert shares(gained)[name] == pytest.approx(share, abs=0.03)

        await asyncio.gather(world.end("gold"), world.end("silver"))
        (pool,) = await world.pools()
        alone, answered = pool.service_tenths, world.answered["bronze"]
        own = service([pool])["bronze"]
        (pool,) = await world.until(lambda pools: world.answered["bronze"] >= answered + 50)
        assert (pool.service_tenths - alone) / 10 == service([pool])["bronze"] - own > 0
        await world.until(lambda pools: pools[0].workers[0].in_flight == few.max_num_seqs)


async def test_a_dedicated_pool_that_lends_serves_others_and_is_given_back_at_once(
    tmp_path: Path, redis_url: str, record_property: Callable[[str, object], None]
) -> None:
    tenants = {"gold": tenant("gold", pool="gold"), "silver": tenant("silver"), "bronze": tenant("bronze")}

    def lent(pools: list[Pool]) -> int:
        return sum(worker.kv_tokens_lent for pool in pools for worker in pool.workers if pool.name == "gold")

    async with floods(tmp_path, redis_url, tenants, gold=True) as world:
        await world.begin("silver", "bronze")
        both = service(await world.pools())
        after = await world.until_served(round(sum(both.values())) + 26 * CAPACITY.kv_tokens)
        gained = {name: after[name] - both[name] for name in both}
        pools = await world.until(lambda pools: lent(pools) > CAPACITY.kv_tokens / 2)
        record_property("measured", f"lent {lent(pools):,} of {CAPACITY.kv_tokens:,} KV tokens; {shown(gained)}")
        assert shares(gained)["silver"] == pytest.approx(0.6, abs=0.03)

        while lent(await world.all_run()) <= CAPACITY.kv_tokens / 2:
            await world.compute()
        await world.begin("gold")
        # Before the engines compute another step, guests leave as far as that makes room for a request of the owner's.
        await world.seen(lambda pools: lent(pools) < CAPACITY.max_model_len)
        await world.until(lambda pools: not lent(pools))
        answered = world.answered["gold"]
        while world.answered["gold"] < answered + 100:
            assert not lent(await world.until(lambda _: True))
            await world.compute()
        await world.end("gold")
        await world.until(lambda pools: lent(pools) > CAPACITY.kv_tokens / 2)
