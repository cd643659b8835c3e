"""The core under random histories: nothing leaks, nothing is promised twice, every submission ends once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import MAX_PASSED
from forebay.scheduler.domain.pressure import PressureRules
from forebay.scheduler.domain.request import AttemptKey
from forebay.scheduler.domain.worker import RunningAttempt

from .builders import WHOLE, grants, info, request, scheduler

WORKERS = {"w1": info("w1", 150, block_tokens=16, max_num_seqs=4), "w2": info("w2", 100, max_num_batched_tokens=20)}

LIMITS = Limits(
    max_queued=12, max_queued_per_tenant=6, queue_timeout_s=5.0, pool=WHOLE, pressure=PressureRules(pace_from=1.0)
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
        self.away: set[str] = set()

    def tick(self) -> None:
        decisions = self.core.tick(self.now)
        for grant in grants(decisions):
            assert grant.worker_id not in self.away
            self.endings[grant.request.key].append("grant")
            self.running[grant.request.key] = grant
            (pool,) = self.core.pools
            worker = pool.workers[grant.worker_id]
            assert len(worker.in_flight) == 1 or worker.peak.tokens <= worker.info.capacity.kv_tokens
        for rejection in decisions.rejections:
            self.endings[rejection.key].append("rejection")
        for withdrawal in decisions.withdrawals:
            self.running.pop(withdrawal.key, None)

    def pick(self, number: int) -> Grant:
        here = [grant for grant in self.running.values() if grant.worker_id not in self.away]
        return here[number % len(here)]

    def anyone_here(self) -> bool:
        return any(grant.worker_id not in self.away for grant in self.running.values())

    @rule(
        tenant=st.sampled_from("abc"),
        prompt=st.integers(1, 60),
        output=st.integers(1, 60),
        excluded=st.sampled_from([(), ("w1",), ("w1", "w2")]),
        remaining=st.none() | st.floats(0, 8),
    )
    def submit(self, tenant: str, prompt: int, output: int, excluded: tuple[str, ...], remaining: float | None) -> None:
        asked = request(
            tenant,
            prompt_tokens=prompt,
            max_tokens=output,
            excluded_workers=frozenset(excluded),
            remaining_s=remaining,
        )
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

    @rule(worker_id=st.sampled_from(sorted(WORKERS)))
    def lose_worker(self, worker_id: str) -> None:
        if worker_id not in self.away:
            self.away.add(worker_id)
            self.core.worker_lost(worker_id, self.now)
        self.tick()

    @precondition(lambda self: bool(self.away))
    @rule()
    def worker_returns(self) -> None:
        worker_id = self.away.pop()
        self.core.worker_registered(WORKERS[worker_id])
        held = [
            RunningAttempt(attempt, grant.request.tenant_id, grant.kv_tokens, 1, started=True)
            for attempt, grant in self.running.items()
            if grant.worker_id == worker_id
        ]
        self.core.worker_running(worker_id, held)
        self.tick()
        self.core.worker_reported(worker_id, self.now)
        self.tick()

    @rule(seconds=st.floats(0.01, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    @invariant()
    def no_worker_is_promised_more_than_it_holds(self) -> None:
        for worker in (worker for pool in self.core.pools for worker in pool.workers.values()):
            capacity, entries = worker.info.capacity, worker.in_flight.values()
            assert worker.promised == sum(entry.kv_tokens for entry in entries)
            assert worker.unprefilled == sum(entry.unprefilled for entry in entries)
            assert len(entries) <= capacity.max_num_seqs
            prompts = [entry.unprefilled for entry in entries if entry.unprefilled]
            assert len(prompts) <= 1 or sum(prompts) <= 2 * capacity.max_num_batched_tokens

    @invariant()
    def what_is_in_flight_is_what_the_workers_hold(self) -> None:
        known = {key for pool in self.core.pools for worker in pool.workers.values() for key in worker.in_flight}
        assert known == set(self.running)

    @invariant()
    def the_neediest_waits_only_if_it_fits_nowhere(self) -> None:
        for pool in self.core.pools:
            assert len(pool.flows.flows()) <= MAX_PASSED
            if (flow := pool.flows.neediest()) is not None:
                head = flow.head
                assert not any(w.may_run(head) and w.has_room_for(head, self.now) for w in pool.workers.values())

    @invariant()
    def counts_agree(self) -> None:
        for pool in self.core.pools:
            flows = pool.flows.flows()
            assert pool.queued == sum(flow.queued for flow in flows)
            assert sum(flow.in_flight for flow in flows) == sum(len(w.in_flight) for w in pool.workers.values())
            assert all(flow.service_tenths >= 0 for flow in flows)

    @invariant()
    def nothing_ends_twice(self) -> None:
        assert all(len(ends) <= 1 for ends in self.endings.values())

    def teardown(self) -> None:
        self.now += 60.0
        self.tick()
        assert all(len(ends) == 1 for ends in self.endings.values())


Histories.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase
