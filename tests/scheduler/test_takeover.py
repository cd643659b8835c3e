"""A new leader: whom it hears first, what it takes over, and a small mesh whose leader dies at any moment.

The mesh is made of what decides in the real one: the router's `Life`, the worker's `Roster`, the scheduler's core. Messages are
functions in queues, one queue for each direction between two peers, and a test delivers them in any order across queues.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forebay.errors import MeshError
from forebay.router.domain import decisions as router_decisions
from forebay.router.domain import events
from forebay.router.domain.life import Life, State
from forebay.router.domain.stream import TokenStream
from forebay.scheduler.domain import flow_tree, leads
from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.flow import RESOLUTION
from forebay.scheduler.domain.request import AttemptKey, Request
from forebay.scheduler.domain.scheduler import Limits, Scheduler
from forebay.scheduler.domain.takeover import WAIT_S, Checkpoint, Takeover
from forebay.scheduler.domain.worker import RunningAttempt
from forebay.worker.domain import grant as worker_grant
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.roster import Entry, Roster

from .builders import EPOCH, flow, granted, grants, info, join, request, scheduler, tenant

names = st.frozensets(st.sampled_from(["a", "b", "c"]))


@settings(max_examples=30, deadline=None)
@given(routers=names, workers=names, heard=st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=8))
def test_it_is_over_when_all_have_spoken_or_time_is_up(
    routers: frozenset[str], workers: frozenset[str], heard: list[tuple[bool, str]]
) -> None:
    takeover = Takeover(Checkpoint(routers, workers), now=10.0)
    silent = {(False, id) for id in routers} | {(True, id) for id in workers}
    assert takeover.over(10.0) == (not silent)
    for is_worker, id in heard:
        (takeover.worker_reported if is_worker else takeover.router_reported)(id)
        silent.discard((is_worker, id))
        assert takeover.over(10.0 + WAIT_S - 0.01) == (not silent)
    assert takeover.over(10.0 + WAIT_S)


def test_a_checkpoint_is_text() -> None:
    checkpoint = Checkpoint(frozenset({"r1"}), frozenset({"w1", "w2"}), {("m", "", "acme"): 1 << 70})
    assert Checkpoint.from_text(checkpoint.to_text()) == checkpoint
    assert Checkpoint.from_text("") == Checkpoint()


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "[]",
        "{}",
        "[" * 100_000,
        '{"routers": 1, "workers": [], "leads": []}',
        '{"leads": [1]}',
        *(
            f'{{"routers": [], "workers": [], "leads": [[{lead}]]}}'
            for lead in ('"m", 5', '"m", "", "GOLD", 1e999', '"m", "", 5')
        ),
    ],
)
def test_other_text_is_told_from_a_checkpoint(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is for the log
        Checkpoint.from_text(text)


def flood(core: Scheduler) -> None:
    for tenant_id in ("ahead", "behind"):
        for _ in range(3):
            core.submit(request(tenant_id), "r", 0.0)


@pytest.mark.parametrize("first", ["ahead", "behind"])
def test_a_flow_is_as_far_ahead_under_the_next_leader(first: str) -> None:
    old = scheduler(info(max_num_seqs=1))
    old.submit(request("ahead", prompt_tokens=300), "r", 0.0)
    flood(old)
    old.tick(0.0)
    lead = tenant(old, "ahead").counter - tenant(old, "behind").counter
    assert old.leads() == {("m", "", "SILVER", "ahead"): lead}
    assert lead > 0

    new = Scheduler(Limits(), EPOCH + 1)
    for tenant_id in sorted(("ahead", "behind"), reverse=first == "behind"):
        new.submit(request(tenant_id), "r", 0.0)
    join(new, info(max_num_seqs=1))
    new.restore(old.leads())
    assert [grant.request.tenant_id for grant in grants(new.tick(0.0))] == ["behind"]
    # Who joined behind the other is a step above it, which decides nothing but ties.
    assert abs(tenant(new, "ahead").counter - tenant(new, "behind").counter - (lead - 100 * RESOLUTION)) <= 1


def test_a_flow_is_as_far_ahead_though_its_pool_comes_late() -> None:
    core = Scheduler(Limits(), EPOCH + 1)
    core.restore({("m", "", "SILVER", "ahead"): 1 << 40})
    core.tick(0.0)
    order = ["behind", "behind", "ahead"]
    for tenant_id in order:
        core.submit(request(tenant_id), "r", 1.0)
    join(core, info(), now=2.0)
    assert [grant.request.tenant_id for grant in grants(core.tick(2.0))] == order


def test_a_tenant_that_nobody_knew_is_owed_nothing_for_its_absence() -> None:
    old = scheduler(info())
    old.submit(request("old"), "r", 0.0)
    old.tick(0.0)
    new = Scheduler(Limits(), EPOCH + 1)
    join(new, info())
    new.restore(old.leads())
    for tenant_id in ("new", "old"):
        new.submit(request(tenant_id), "r", 0.0)
    assert abs(tenant(new, "new").counter - tenant(new, "old").counter) <= 1


def ahead_by(core: Scheduler, tenant_id: str) -> int:
    return core.leads().get(("m", "", "SILVER", tenant_id), 0)


def test_a_pool_that_has_no_worker_yet_keeps_what_was_inherited() -> None:
    old = scheduler(info(max_num_seqs=1))
    old.submit(request("ahead", prompt_tokens=300), "r", 0.0)
    flood(old)
    old.tick(0.0)
    inherited = old.leads()
    new = Scheduler(Limits(), EPOCH + 1)
    new.restore(inherited)
    assert new.leads() == inherited, "it may end before anybody has come"
    flood(new)
    assert not grants(new.tick(0.0))
    assert new.leads() == inherited
    join(new, info(max_num_seqs=1))
    assert [grant.request.tenant_id for grant in grants(new.tick(0.0))] == ["behind"]


def test_who_was_ahead_and_does_not_come_back_is_remembered_only_as_long_as_it_would_be_ahead() -> None:
    new = Scheduler(Limits(), EPOCH + 1)
    join(new, info(kv_tokens=10_000))
    new.restore({("m", "", "SILVER", "gone"): 1000 * RESOLUTION})
    assert ahead_by(new, "gone") == 1000 * RESOLUTION
    for more in (600, 200, 0):
        new.submit(request("here", prompt_tokens=40), "r", 0.0)
        new.tick(0.0)
        assert ahead_by(new, "gone") == more * RESOLUTION
    assert not new.leads()


def test_of_too_many_that_are_ahead_those_are_kept_that_are_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "MAX_LEADS", 2)
    core = Scheduler(Limits(), EPOCH)
    core.restore({("m", "", "SILVER", "a"): 5, ("m", "", "SILVER", "b"): 7, ("m", "", "SILVER"): 1})
    assert core.leads() == {("m", "", "SILVER"): 1, ("m", "", "SILVER", "b"): 7}


def test_those_who_are_here_are_kept_before_those_whose_pool_nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "MAX_LEADS", 1)
    core = scheduler(info())
    core.restore({("m", "", "SILVER", "here"): 5, ("m", "gone", "SILVER", "b"): 7})
    core.tick(0.0)
    assert core.leads() == {("m", "", "SILVER", "here"): 5}


def test_of_those_that_were_ahead_no_more_are_remembered_than_of_any_who_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_tree, "MAX_IDLE_FLOWS", 2)
    core = scheduler(info())
    core.restore({("m", "", "SILVER", name): 10 for name in "abc"})
    core.tick(0.0)
    assert core.leads() == {("m", "", "SILVER", name): 10 for name in "bc"}


def test_what_is_adopted_is_charged_once_its_router_claims_it() -> None:
    core = scheduler()
    held = request("acme", prompt_tokens=100, max_tokens=50)
    core.worker_registered(info())
    core.worker_running("w1", [RunningAttempt(held.key, "acme", 150, 20, started=True)])
    core.worker_reported("w1", 0.0)
    core.progress("w1", held.key, 21, prefilled=True)
    core.claim(held, "r", "w1")
    core.progress("w1", held.key, 31, prefilled=True)
    assert (flow(core, "acme").in_flight, flow(core, "acme").service_tenths) == (1, 200)


@pytest.mark.parametrize("known", [True, False])
def test_what_departs_while_its_worker_still_reports_is_gone(known: bool) -> None:
    core = scheduler(info())
    if known:
        core.submit(request(), "r", 0.0)
        (held,) = granted(core.tick(0.0))
    else:
        held = request().key
    core.worker_lost("w1", 0.0)
    core.worker_registered(info())
    core.worker_running("w1", [RunningAttempt(held, "acme", 20, 3, started=True)])
    core.departure("w1", held, generated_tokens=5, cached_tokens=0, started=True)
    core.worker_reported("w1", 0.0)
    (pool,) = core.pools
    assert not pool.workers["w1"].in_flight


def test_what_a_silent_worker_holds_is_its_own_until_the_router_gives_it_up() -> None:
    core = scheduler(info("w2"))
    kept, declined = request("kept"), request("declined")
    for held in (kept, declined):
        core.claim(held, "r", "w1")
    assert not granted(core.tick(0.0))
    core.decline(declined.key)
    core.worker_registered(info("w1"))
    core.worker_running("w1", [RunningAttempt(held.key, "", 20, 0, started=True) for held in (kept, declined)])
    core.worker_reported("w1", 1.0)
    (pool,) = core.pools
    assert [flow.tenant.name for flow in pool.flows.flows()] == ["kept"]
    assert len(pool.workers["w1"].in_flight) == 2, "what runs takes up room, whoever's it is"


# The small mesh.

ROUTERS = ("r1", "r2")
WORKERS = {"w1": info("w1", 60, max_num_seqs=2), "w2": info("w2", 60, max_num_seqs=2)}


@dataclass(eq=False)
class Asked:
    """A request, at its router."""

    id: str
    router: str
    life: Life
    stream: TokenStream


@dataclass(eq=False)
class Engine:
    """A worker: what is on it, and how far it has come."""

    id: str
    roster: Roster
    running: dict[AttemptKey, tuple[Asked, int, int]] = field(default_factory=dict)


class Mesh(RuleBasedStateMachine):
    """Two routers, two workers, one leader after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.epoch = 0
        self.checkpoint = Checkpoint()
        self.asked: dict[str, Asked] = {}
        self.engines = {id: Engine(id, Roster(id, 1)) for id in WORKERS}
        self.queues: dict[tuple[str, str], deque[Callable[[], None]]] = {}
        self.starts: Counter[AttemptKey] = Counter()
        self.given: dict[bytes, Grant] = {}
        self.elect()

    def elect(self) -> None:
        self.epoch += 1
        self.core = Scheduler(Limits(queue_timeout_s=1e9, grant_expiry_s=2.0), self.epoch)
        self.takeover = Takeover(self.checkpoint, self.now)
        self.taken_over = False
        self.attached: set[str] = set()
        for pair in [pair for pair in self.queues if "leader" in pair]:
            del self.queues[pair]
        for id in (*ROUTERS, *WORKERS):
            self.send(id, "leader", lambda id=id: self.attach(id))

    def send(self, sender: str, to: str, message: Callable[[], None]) -> None:
        self.queues.setdefault((sender, to), deque()).append(message)

    def tick(self) -> None:
        if not self.taken_over:
            if not self.takeover.over(self.now):
                return
            self.core.restore(self.checkpoint.leads)
            self.taken_over = True
        decided = self.core.tick(self.now)
        for withdrawal in decided.withdrawals:
            id = AttemptId(withdrawal.key.request_id, withdrawal.key.attempt)
            roster = self.engines[withdrawal.worker_id].roster
            self.send("leader", withdrawal.worker_id, lambda roster=roster, id=id: roster.withdraw(id))
        for batch in decided.batches:
            for grant in batch.grants:
                assert batch.worker_id in self.attached
                entry = Entry(
                    AttemptId(grant.request.key.request_id, grant.request.key.attempt),
                    (grant.epoch, grant.batch_id),
                    grant.request.tenant_id,
                    grant.kv_tokens,
                    grant.expires_at,
                )
                engine = self.engines[batch.worker_id]
                self.send("leader", engine.id, lambda e=engine, entry=entry: self.announce(e, entry))
        for grant in (*decided.repeats, *grants(decided)):
            self.send("leader", grant.router, lambda grant=grant: self.hear_grant(grant))
        assert not decided.rejections

    # Routers.

    def carry_out(self, asked: Asked, event: events.Event) -> None:
        router, key = asked.router, AttemptKey(asked.id, asked.life.attempt)
        for decision in asked.life.on(event):
            match decision:
                case router_decisions.Submit() if router in self.attached:
                    self.send(router, "leader", lambda: self.submit(asked))
                case router_decisions.Start(grant):
                    self.send(router, grant.worker_id, lambda grant=grant: self.start(asked, self.given[grant.body]))
                case router_decisions.Decline() if router in self.attached:
                    self.send(router, "leader", lambda: self.core.decline(key))
                case router_decisions.Withdraw() if router in self.attached:
                    self.send(router, "leader", lambda: self.core.cancel(key))

    def hear_grant(self, grant: Grant) -> None:
        body = f"{grant.epoch} {grant.batch_id} {grant.request.key}".encode()
        self.given[body] = grant
        told = events.Grant(
            grant.request.key.attempt, grant.worker_id, 1, grant.worker_address, 0.0, grant.request.max_tokens, body
        )
        self.carry_out(self.asked[grant.request.key.request_id], events.Granted(told))

    def submission(self, asked: Asked) -> Request:
        received = asked.stream.received
        return request(
            f"tenant-{asked.router}",
            key=AttemptKey(asked.id, asked.life.attempt),
            prompt_tokens=10 + received,
            max_tokens=asked.stream.limit - received,
            delivered_tokens=received,
        )

    def submit(self, asked: Asked) -> None:
        if asked.life.state is State.QUEUED:
            self.core.submit(self.submission(asked), asked.router, self.now)

    # Workers.

    def announce(self, engine: Engine, entry: Entry) -> None:
        engine.roster.saw_epoch(entry.draw[0])
        engine.roster.announce(entry)

    def start(self, asked: Asked, grant: Grant) -> None:
        engine, key = self.engines[grant.worker_id], grant.request.key
        leave = worker_grant.Grant(
            id=AttemptId(key.request_id, key.attempt),
            worker_id=grant.worker_id,
            incarnation=grant.worker_incarnation,
            epoch=grant.epoch,
            batch_id=grant.batch_id,
            tenant_id=grant.request.tenant_id,
            adapter="",
            priority=0,
            prompt_tokens=grant.request.prompt_tokens,
            max_tokens=grant.request.max_tokens,
            kv_tokens=grant.kv_tokens,
            expires_in=grant.expires_at - self.now,
        )
        payload = worker_grant.Payload(grant.request.tenant_id, grant.request.prompt_tokens, grant.request.max_tokens)
        try:
            engine.roster.admit(leave, payload)
        except MeshError as error:
            refused = events.Refused(key.attempt, error)
            self.send(engine.id, asked.router, lambda: self.carry_out(asked, refused))
            return
        self.starts[key] += 1
        engine.running[key] = (asked, 0, grant.kv_tokens)

    def report(self, engine: Engine, epoch: int) -> None:
        """What the worker does on a welcome."""
        engine.roster.saw_epoch(epoch)
        held = [
            RunningAttempt(key, f"tenant-{asked.router}", kv_tokens, generated, started=True)
            for key, (asked, generated, kv_tokens) in engine.running.items()
        ]
        held += [
            RunningAttempt(AttemptKey(e.id.request_id, e.id.attempt), e.tenant_id, e.kv_tokens, 0, started=False)
            for e in engine.roster.pending
        ]
        self.send(engine.id, "leader", lambda: self.hear_report(engine.id, held))

    def hear_report(self, worker_id: str, held: list[RunningAttempt]) -> None:
        self.core.worker_running(worker_id, held)
        self.core.worker_reported(worker_id, self.now)
        self.takeover.worker_reported(worker_id)

    # What may happen.

    @rule(router=st.sampled_from(ROUTERS), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def ask(self, router: str, lengths: list[int]) -> None:
        for length in lengths:
            stream, id = TokenStream(length), f"{len(self.asked):032x}"
            life = Life(stream, 10, continuable=True, max_attempts=1_000_000)
            self.asked[id] = Asked(id, router, life, stream)
            self.carry_out(self.asked[id], events.Reserved())

    @rule(numbers=st.lists(st.integers(0, 1 << 16), min_size=1, max_size=12))
    def deliver(self, numbers: list[int]) -> None:
        for number in numbers:
            ready = [pair for pair, queue in self.queues.items() if queue]
            if ready:
                self.queues[ready[number % len(ready)]].popleft()()
                self.tick()

    @rule()
    def settle(self) -> None:
        """Delivers everything, and what follows from it."""
        while any(self.queues.values()):
            self.deliver([0])

    @rule(silent=st.frozensets(st.sampled_from([*ROUTERS, *WORKERS]), max_size=2))
    def settle_with_leader(self, silent: frozenset[str] = frozenset()) -> None:
        """Delivers what goes to and from the leader, save to and from some, while payloads are under way."""
        while ready := [
            q for pair, q in self.queues.items() if "leader" in pair and q and not silent.intersection(pair)
        ]:
            ready[0].popleft()()
            self.tick()

    @rule(silent=st.frozensets(st.sampled_from([*ROUTERS, *WORKERS]), max_size=2))
    def another_takes_over(self, silent: frozenset[str]) -> None:
        self.elect()
        self.settle_with_leader(silent)

    @rule(worker_id=st.sampled_from(sorted(WORKERS)))
    def step(self, worker_id: str) -> None:
        engine = self.engines[worker_id]
        for key, (asked, generated, kv_tokens) in list(engine.running.items()):
            generated += 1
            tokens = asked.stream.received
            engine.running[key] = (asked, generated, kv_tokens)
            self.send(engine.id, asked.router, lambda a=asked, k=key: self.carry_out(a, events.FirstOutput(k.attempt)))
            if asked.stream.limit <= tokens + generated:
                del engine.running[key]
                engine.roster.finish(AttemptId(key.request_id, key.attempt))
                usage = events.Usage(10, 0, asked.stream.limit)
                end = events.Finished(key.attempt, events.FinishReason.LENGTH, usage, 0.0, None)
                self.send(engine.id, asked.router, lambda a=asked, end=end: self.carry_out(a, end))
                if worker_id in self.attached:
                    self.send(
                        worker_id, "leader",
                        lambda k=key, n=generated: self.core.departure(
                            worker_id, k, generated_tokens=n, cached_tokens=0, started=True
                        ),
                    )  # fmt: skip

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for engine in self.engines.values():
            for id in engine.roster.expire(self.now):
                key = AttemptKey(id.request_id, id.attempt)
                if engine.id in self.attached:
                    self.send(engine.id, "leader", lambda e=engine, k=key: self.core.entry_expired(e.id, k))
        self.tick()

    @rule()
    def leave_checkpoint(self) -> None:
        if self.taken_over:
            routers = frozenset(self.attached & set(ROUTERS))
            self.checkpoint = Checkpoint(routers, frozenset(self.attached & set(WORKERS)), self.core.leads())

    def attach(self, id: str) -> None:
        self.attached.add(id)
        if id in WORKERS:
            self.core.worker_registered(WORKERS[id])
            epoch = self.epoch
            self.send("leader", id, lambda: self.report(self.engines[id], epoch))
            return
        for asked in self.asked.values():
            if asked.router == id and asked.life.state is State.QUEUED:
                self.send(id, "leader", lambda asked=asked: self.submit(asked))
            elif asked.router == id and asked.life.grant is not None and asked.life.state is not State.DONE:
                held, worker_id = self.submission(asked), asked.life.grant.worker_id
                self.send(id, "leader", lambda held=held, w=worker_id: self.core.claim(held, id, w))
        self.send(id, "leader", lambda: self.takeover.router_reported(id))

    # What must hold.

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert not self.starts or max(self.starts.values()) == 1
        running = Counter(key.request_id for engine in self.engines.values() for key in engine.running)
        assert not running or max(running.values()) == 1

    @invariant()
    def no_engine_holds_more_than_it_can(self) -> None:
        for engine in self.engines.values():
            capacity = WORKERS[engine.id].capacity
            assert len(engine.running) <= capacity.max_num_seqs
            assert sum(kv_tokens for _, _, kv_tokens in engine.running.values()) <= capacity.kv_tokens

    @invariant()
    def the_leader_knows_of_all_that_runs_where_it_has_been_told(self) -> None:
        for worker in (worker for pool in self.core.pools for worker in pool.workers.values()):
            assert worker.reported is not None or set(self.engines[worker.info.id].running) <= set(worker.in_flight)

    def teardown(self) -> None:
        """Everything is served in the end, and nothing is left behind."""
        for _ in range(2_000):
            self.settle()
            if all(asked.life.state is State.DONE for asked in self.asked.values()):
                break
            for id in WORKERS:
                self.step(id)
            self.wait(0.1)
        assert all(asked.life.state is State.DONE for asked in self.asked.values())
        self.wait(2.1)
        self.wait(2.1)
        self.settle()
        for pool in self.core.pools:
            assert not pool.queued
            assert not pool.flows.flows()
            assert all(not worker.in_flight and not worker.promised for worker in pool.workers.values())


Mesh.TestCase.settings = settings(max_examples=8, stateful_step_count=40, deadline=None)
TestMesh = Mesh.TestCase
