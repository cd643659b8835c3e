"""The core under random histories: nothing leaks, nothing is promised twice, every submission ends once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.eviction import EvictionRules
from forebay.scheduler.domain.flow import Flow, Node
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.peak import Peak
from forebay.scheduler.domain.pool import MAX_PASSED
from forebay.scheduler.domain.pressure import PressureRules
from forebay.scheduler.domain.request import AttemptKey, Queued, ServiceClass
from forebay.scheduler.domain.worker import EngineState, RunningAttempt, Worker

from .builders import MODEL, WHOLE, grants, info, request, scheduler

OTHER_MODEL = "other"
WORKERS = {
    "w1": info("w1", 150, block_tokens=16, max_num_seqs=6, max_adapters=1),
    "w2": info("w2", 100, max_num_batched_tokens=20),
    "w3": info("w3", 120, pool="vip"),
    "w4": replace(info("w4", 90), model=OTHER_MODEL),
}
CAP = 3

EVICTING = replace(WHOLE, eviction=EvictionRules(after_s=0.0, more_s=0.1, margin=1.2))
LIMITS = Limits(
    max_queued=12,
    max_queued_per_tenant=6,
    queue_timeout_s=5.0,
    pool=EVICTING,
    pools={"vip": replace(EVICTING, lends=True, room=replace(EVICTING.room, tenant_in_flight=CAP, lent_share=0.5))},
    adapters=frozenset((MODEL, f"{tenant}-own", tenant) for tenant in "abc"),
    pressure=PressureRules(pace_from=0.3, shorten_from=0.4),
)

index = st.integers(0, 1 << 20)


class Histories(RuleBasedStateMachine):
    """Routers and workers that do anything they may, against one core."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = scheduler(*WORKERS.values(), limits=LIMITS)
        self.endings: dict[AttemptKey, list[str]] = {}
        self.tenants: dict[AttemptKey, str] = {}
        self.running: dict[AttemptKey, Grant] = {}  # what the workers hold
        self.known = dict(WORKERS)
        self.away: set[str] = set()
        self.stopped: set[str] = set()  # they drain, or their engines are not well
        self.pools: dict[AttemptKey, tuple[str, str]] = {}
        self.starts_at: dict[AttemptKey, float] = {}
        self.evicted: set[AttemptKey] = set()  # of what runs
        self.generated: Counter[AttemptKey] = Counter()

    def tick(self) -> None:
        decisions = self.core.tick(self.now)
        for grant in grants(decisions):
            assert grant.worker_id not in self.away | self.stopped
            assert self.starts_at[grant.request.key] <= self.now
            self.endings[grant.request.key].append("grant")
            self.running[grant.request.key] = grant
            worker = self.workers()[grant.worker_id]
            assert len(worker.in_flight) == 1 or worker.peak.tokens <= worker.info.capacity.kv_tokens
        for rejection in decisions.rejections:
            self.endings[rejection.key].append("rejection")
        for eviction in decisions.evictions:
            assert self.running[eviction.key].worker_id == eviction.worker_id
            assert eviction.key not in self.evicted
            self.evicted.add(eviction.key)
        for withdrawal in decisions.withdrawals:
            self.running.pop(withdrawal.key, None)
        self.evicted &= set(self.running)

    def workers(self) -> dict[str, Worker]:
        return {name: worker for pool in self.core.pools for name, worker in pool.workers.items()}

    def pick(self, number: int) -> Grant:
        here = [grant for grant in self.running.values() if grant.worker_id not in self.away]
        return here[number % len(here)]

    def anyone_here(self) -> bool:
        return any(grant.worker_id not in self.away for grant in self.running.values())

    @rule(
        count=st.integers(1, 6),
        tenant=st.sampled_from("abc"),
        prompt=st.integers(1, 30),
        output=st.integers(1, 30),
        excluded=st.sampled_from([(), (), (), ("w1",), ("w1", "w2")]),
        remaining=st.none() | st.floats(0, 8),
        start_after=st.sampled_from((0.0, 0.0, 2.0)),
        pool=st.sampled_from(((MODEL, ""), (MODEL, ""), (MODEL, "vip"), (OTHER_MODEL, ""))),
        adapted=st.sampled_from((False, False, True)),
        standing=st.tuples(st.sampled_from(ServiceClass), st.sampled_from((500, 1000, 3000))),
    )
    def submit(
        self,
        count: int,
        tenant: str,
        prompt: int,
        output: int,
        excluded: tuple[str, ...],
        remaining: float | None,
        start_after: float,
        pool: tuple[str, str],
        adapted: bool,
        standing: tuple[ServiceClass, int],
    ) -> None:
        for _ in range(count):
            asked = request(
                tenant,
                prompt_tokens=prompt,
                max_tokens=output,
                excluded_workers=frozenset(excluded),
                remaining_s=remaining,
                start_after_s=start_after,
                least_max_tokens=output // 2,
                adapter=f"{tenant}-own" if adapted else "",
                model=pool[0],
                pool=pool[1],
                service_class=standing[0],
                weight_milli=standing[1],
            )
            self.pools[asked.key] = pool
            self.starts_at[asked.key] = self.now + start_after
            self.endings[asked.key] = []
            self.tenants[asked.key] = tenant
            self.core.submit(asked, f"r/{tenant}", self.now)
        self.tick()

    @precondition(lambda self: any(not ends for ends in self.endings.values()))
    @rule(number=index)
    def cancel_queued(self, number: int) -> None:
        open_ones = [attempt for attempt, ends in self.endings.items() if not ends]
        attempt = open_ones[number % len(open_ones)]
        self.core.cancel(attempt)
        self.endings[attempt].append("cancel")
        self.tick()

    @precondition(anyone_here)
    @rule(number=index)
    def decline(self, number: int) -> None:
        self.core.decline(self.pick(number).request.key)
        self.tick()

    @precondition(anyone_here)
    @rule(number=index, generated=st.integers(0, 70))
    def progress(self, number: int, generated: int) -> None:
        grant = self.pick(number)
        self.generated[grant.request.key] = max(generated, self.generated[grant.request.key])
        self.core.progress(grant.worker_id, grant.request.key, generated, prefilled=generated > 0)
        self.tick()

    @precondition(anyone_here)
    @rule(number=index, generated=st.integers(0, 60), cached=st.integers(0, 60), started=st.booleans())
    def depart(self, number: int, generated: int, cached: int, started: bool) -> None:
        grant = self.pick(number)
        del self.running[grant.request.key]
        self.core.departure(
            grant.worker_id, grant.request.key, generated_tokens=generated, cached_tokens=cached, started=started
        )
        self.tick()

    @precondition(lambda self: any(self.running[key].worker_id not in self.away for key in self.evicted))
    @rule(number=index)
    def hand_over(self, number: int) -> None:
        """A worker does as it was told, and the router submits the rest."""
        here = sorted((key for key in self.evicted if self.running[key].worker_id not in self.away), key=str)
        key = here[number % len(here)]
        grant = self.running.pop(key)
        done = min(self.generated[key], grant.request.max_tokens - 1)
        self.core.departure(grant.worker_id, key, generated_tokens=done, cached_tokens=0, started=done > 0)
        rest = replace(
            grant.request,
            key=AttemptKey(key.request_id, key.attempt + 1),
            prompt_tokens=grant.request.prompt_tokens + done,
            max_tokens=grant.request.max_tokens - done,
            delivered_tokens=grant.request.delivered_tokens + done,
            start_after_s=0.0,
        )
        self.endings[rest.key] = []
        self.tenants[rest.key] = rest.tenant_id
        self.pools[rest.key] = rest.model, rest.pool
        self.starts_at[rest.key] = self.now
        self.core.submit(rest, f"r/{rest.tenant_id}", self.now)
        self.tick()

    @rule(tenant=st.sampled_from("abc"))
    def lose_router(self, tenant: str) -> None:
        self.core.router_lost(f"r/{tenant}")
        for pool in self.core.pools:
            assert all(flow.tenant.name != tenant or not flow.queued for flow in pool.flows.flows())
        for attempt in self.waiting_of(tenant):
            self.endings[attempt].append("dropped")
        self.tick()

    def waiting_of(self, tenant: str) -> list[AttemptKey]:
        return [attempt for attempt in self.endings if not self.endings[attempt] and self.tenants[attempt] == tenant]

    @precondition(lambda self: not self.away)
    @rule(worker_id=st.sampled_from(sorted(WORKERS)))
    def lose_worker(self, worker_id: str) -> None:
        self.away.add(worker_id)
        self.core.worker_lost(worker_id, self.now)
        self.tick()

    @precondition(lambda self: bool(self.away))
    @rule()
    def worker_returns(self) -> None:
        worker_id = self.away.pop()
        self.stopped.discard(worker_id)
        self.core.worker_registered(self.known[worker_id])
        held = [
            RunningAttempt(attempt, grant.request.tenant_id, grant.kv_tokens, 1, started=True)
            for attempt, grant in self.running.items()
            if grant.worker_id == worker_id
        ]
        self.evicted -= {attempt.key for attempt in held}  # its worker may not have heard of it
        self.core.worker_running(worker_id, held)
        self.tick()
        self.core.worker_reported(worker_id, self.now)
        self.tick()

    @rule(worker_id=st.sampled_from(sorted(WORKERS)), kv_tokens=st.integers(60, 150))
    def restart_worker(self, worker_id: str, kv_tokens: int) -> None:
        """A worker begins another life, larger or smaller, whether or not it was missed, and with it ends all that it ran."""
        before = self.known[worker_id]
        capacity = replace(before.capacity, kv_tokens=kv_tokens)
        self.known[worker_id] = replace(before, incarnation=before.incarnation + 1, capacity=capacity)
        self.away.discard(worker_id)
        self.stopped.discard(worker_id)
        self.running = {key: grant for key, grant in self.running.items() if grant.worker_id != worker_id}
        self.evicted &= set(self.running)
        self.core.worker_registered(self.known[worker_id])
        self.core.worker_reported(worker_id, self.now)
        self.tick()

    @rule(worker_id=st.sampled_from(sorted(WORKERS)), drains=st.booleans())
    def stop_worker(self, worker_id: str, drains: bool) -> None:
        if worker_id not in self.away:
            self.stopped.add(worker_id)
            if drains:
                self.core.worker_draining(worker_id)
            else:
                self.core.engine_state(worker_id, EngineState(healthy=False))
            self.tick()

    @rule(seconds=st.floats(0.01, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    @invariant()
    def no_worker_is_promised_more_than_it_holds(self) -> None:
        for worker in self.workers().values():
            capacity, entries = worker.info.capacity, worker.in_flight.values()
            used = Counter(entry.adapter for entry in entries if entry.adapter)
            assert worker.adapters == used
            assert len(used) <= capacity.max_adapters
            assert worker.promised == sum(entry.kv_tokens for entry in entries)
            assert worker.unprefilled == sum(entry.unprefilled for entry in entries)
            assert worker.expected == sum(entry.future[1] - entry.future[0] for entry in entries)
            assert worker.lent == sum(entry.expected_tokens for entry in entries if entry.pool is not worker.pool)
            staying = [entry for entry in entries if not entry.evicted]
            lent = sum(entry.expected_tokens for entry in staying if entry.pool is not worker.pool)
            assert lent <= worker.rules.lent_share * capacity.kv_tokens
            assert worker.peak.tokens == Peak(entry.future for entry in staying).tokens
            assert len(staying) <= capacity.max_num_seqs
            prompts = [entry.unprefilled for entry in staying if entry.unprefilled]
            assert len(prompts) <= 1 or sum(prompts) <= 2 * capacity.max_num_batched_tokens

    @invariant()
    def what_is_in_flight_is_what_the_workers_hold(self) -> None:
        known = {key for worker in self.workers().values() for key in worker.in_flight}
        assert known == set(self.running)

    @invariant()
    def the_neediest_waits_only_if_it_fits_nowhere(self) -> None:
        for pool in self.core.pools:
            assert len(pool.flows.flows()) <= MAX_PASSED
            if (flow := pool.flows.neediest()) is not None:
                head = flow.head
                assert (pool.name == "vip" and flow.tenant.in_flight >= CAP) or not any(
                    w.present and w.may_run(head) and w.has_room_for(head, self.now) for w in pool.workers.values()
                )

    @invariant()
    def counts_agree(self) -> None:
        for pool in self.core.pools:
            flows = pool.flows.flows()
            name = pool.model, pool.name
            waiting = [key for key, ends in self.endings.items() if not ends and self.pools[key] == name]
            assert pool.queued == len(waiting) >= sum(flow.queued for flow in flows)
            running = [key for key in self.running if self.pools[key] == name]
            assert pool.flows.root.in_flight == sum(flow.in_flight for flow in flows) == len(running)
            assert all(flow.service_tenths >= 0 for flow in flows)

    @invariant()
    def the_trees_agree_with_what_waits_and_runs(self) -> None:
        entries = [entry for worker in self.workers().values() for entry in worker.in_flight.values()]
        for pool in self.core.pools:
            above: list[Node[Queued]] = [pool.flows.root]
            while above:
                node = above.pop()
                below = list(node.children.values())
                above += below
                if isinstance(node, Flow):
                    assert node.kv_tokens == sum(entry.expected_tokens for entry in entries if entry.flow is node)
                    assert node.busy == (not node.idle)
                    continue
                waiting = {child for child in below if (child.queue if isinstance(child, Flow) else child.waiting)}
                assert {child: counter for counter, child in node.waiting} == {each: each.counter for each in waiting}
                assert node.kv_tokens == sum(child.kv_tokens for child in below)
                assert node.busy_weight == sum(child.weight_milli for child in below if child.busy)
                assert node.busy == any(child.busy for child in below) or node.parent is None

    @invariant()
    def nothing_ends_twice(self) -> None:
        assert all(len(ends) <= 1 for ends in self.endings.values())

    def teardown(self) -> None:
        self.now += 60.0
        self.tick()
        assert all(len(ends) == 1 for ends in self.endings.values())


Histories.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase


class LongHistories(Histories):
    """The same, longer and more of them."""


LongHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLongHistories = pytest.mark.slow(LongHistories.TestCase)
