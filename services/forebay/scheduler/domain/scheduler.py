"""The scheduler's core: everything that is waiting, running and free, and the decisions that follow.

Callers report what happened (a submission, a departure, a lost session); `tick` says what to do about all of it at once. So what
one turn of an event loop brings is decided together: one draw, one batch for each worker.

Who owns an attempt, and when (rule P1). The router owns the request throughout; here its attempt is in exactly one of
these places, and leaves the last with a grant, a rejection or the router's own word:

    submit ──▶ queued ──tick──▶ in flight on a worker ──▶ forgotten: departure, expired, decline, cancellation
                 └──▶ forgotten: rejection, cancellation, its router's session lost

Room is freed by the one who knows: the worker says that an attempt departed or that its payload never came, the router that
it will not send one. A router's broken session frees no room: its payloads may have arrived, and the worker's own timer (2 s)
tells. A worker's broken session frees none either: what it runs, runs on (rule P1).

Taking over (rule P3, `takeover`). Nothing is granted to a worker before it has said all that it holds. What routers hold on a
worker that has not spoken yet is a claim: it says whom to charge for what the worker then reports. The worker's report is final:
a grant it does not know and that this scheduler did not give comes back as a refusal to its router, which owns the request
and submits it again.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

from forebay.errors import Code, MeshError
from forebay.scheduler.domain import refusals
from forebay.scheduler.domain.claims import MAX_REPORTED, Claim, Claims
from forebay.scheduler.domain.decisions import Batch, Decisions, Eviction, Grant, Rejection, Withdrawal
from forebay.scheduler.domain.flow import Flow
from forebay.scheduler.domain.indexed_heap import IndexedHeap
from forebay.scheduler.domain.leads import Leads
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.pools import Pools
from forebay.scheduler.domain.promises import Promises
from forebay.scheduler.domain.queue import Queue
from forebay.scheduler.domain.request import AttemptKey, Queued, Request, Spell
from forebay.scheduler.domain.takeover import Path
from forebay.scheduler.domain.worker import EngineState, InFlight, RunningAttempt, Worker, WorkerInfo

GRANT_MARGIN_S = 0.5
"""How long after a grant's expiry its payload can still turn up in a worker's word."""

PRIORITY_STEP = 16
"""Tenths of a weighted token, per unit of class weight, that make one step of an engine's priority."""

MAX_PRIORITY = (1 << 31) - 1


class Scheduler:
    """Queues, workers and grants. Not safe for threads; the time may not go back from call to call.

    Attributes:
        epoch: goes into every grant; the caller makes it larger than any before.
    """

    def __init__(self, limits: Limits, epoch: int) -> None:
        self.epoch = epoch
        self._limits = limits
        self._pools = Pools(limits)
        self._leads = Leads(self._pools)
        self._workers: dict[str, Worker] = {}
        self._queue = Queue(limits)
        self._promises = Promises()
        self._claims = Claims()
        # Three things end by time: a wait (or a part of it), a promise that its worker does not know of, and the memory of a
        # worker that is away.
        self._timers: IndexedHeap[Queued | InFlight | Worker, float] = IndexedHeap()
        # Pools in which something changed since they were last drawn from; a dict, for its order.
        self._changed: dict[Pool, None] = {}
        self._batch_ids = itertools.count(1)
        self._repeats: list[Grant] = []
        self._rejections: list[Rejection] = []
        self._withdrawals: list[Withdrawal] = []

    @property
    def pools(self) -> list[Pool]:
        """The pools in order of name and model; to be looked at only."""
        return list(self._pools)

    @property
    def waiting(self) -> Iterable[Queued]:
        """What waits in all pools, in order of arrival; to be looked at only."""
        return self._queue

    def leads(self) -> dict[Path, int]:
        """Returns by how many steps of its counter each node is ahead of its neediest sibling; those at 0 are left out."""
        return self._leads.all()

    def restore(self, leads: Mapping[Path, int]) -> None:
        """Puts flows ahead by what they were under the scheduler before; call it once, before the first tick."""
        self._leads.inherit(leads)

    # What routers say.

    def submit(self, request: Request, router: str, now: float) -> None:
        """Queues an attempt, or answers it as before: one that waits keeps its place, one that is granted gets its grant again.

        Args:
            router: the session that is to hear what becomes of it.
        """
        if (waiting := self._queue.get(request.key)) is not None:
            waiting.router = router
            return
        if (entry := self._promises.get(request.key)) is not None:
            if entry.grant is not None and (entry.started or now < entry.grant.expires_at):
                self._repeats.append(replace(entry.grant, router=router))
                return
            # The grant came too late to the router, or an earlier scheduler gave it and it never came.
            self._withdraw(entry)
        self._claims.discard(request.key)
        pool = self._pool(request.model, request.pool)
        flow, excluded = self._flow(pool, request), self._spells(request.excluded_workers)
        try:
            queued = self._queue.join(request, router, pool, flow, excluded, now)
        except MeshError as error:
            self.refuse(request.key, router, error)
        else:
            self._timers.put(queued, queued.due_at)

    def refuse(self, key: AttemptKey, router: str, error: MeshError) -> None:
        """Answers a submission that could not even be understood."""
        self._rejections.append(Rejection(key, router, error))

    def cancel(self, key: AttemptKey) -> None:
        """Drops an attempt that its router no longer wants. One that is known to run ends by its worker's word."""
        self._claims.discard(key)
        if (queued := self._queue.get(key)) is not None:
            self._dequeue(queued)
        elif (entry := self._promises.get(key)) is not None and not entry.started:
            # It may have begun unknown to us, so its input stays charged: cancelling must not make prefill free.
            self._withdraw(entry, refund=False)

    def decline(self, key: AttemptKey) -> None:
        """Frees the room of a grant that its router will not use."""
        self._claims.discard(key)
        entry = self._promises.get(key)
        if entry is not None and not entry.started:
            self._withdraw(entry)

    def claim(self, request: Request, router: str, worker_id: str) -> None:
        """Notes an attempt that a router holds, granted or running, from before its session."""
        entry = self._promises.get(request.key)
        if entry is not None:
            self._attribute(entry, request)
            return
        worker = self._workers.get(worker_id)
        if request.key not in self._queue and (worker is None or worker.reported is not None):
            self._claims.add(Claim(request, router, worker_id))

    def router_lost(self, router: str) -> None:
        """Drops what a router's session had queued; the router submits it again on its next session."""
        for queued in [queued for queued in self._queue if queued.router == router]:
            self._dequeue(queued)
        self._claims.router_lost(router)

    # What workers say. Words about an attempt that is not in flight on the worker are too late and change nothing.

    def worker_registered(self, info: WorkerInfo) -> None:
        """Makes a worker known, or lets it return. It is granted nothing until `worker_reported`.

        Raises:
            MeshError: FAILED_PRECONDITION STALE_INCARNATION, a later life of the worker has a session.
        """
        worker = self._workers.get(info.id)
        # Of a later life without a session an earlier number may be the successor: its machine's clock was put back.
        if worker is not None and worker.attached and info.incarnation < worker.info.incarnation:
            raise MeshError(
                Code.FAILED_PRECONDITION, "STALE_INCARNATION", f"a later life of {info.id} has registered; end this one"
            )
        pool = self._pool(info.model, info.pool)
        if worker is None or info.incarnation != worker.info.incarnation or worker.pool is not pool:
            if worker is not None:
                self._forget(worker)
            worker = self._workers[info.id] = pool.workers[info.id] = Worker(info, pool, pool.rules.room)
        else:
            self._timers.discard(worker)
            worker.returned(info)
        for queued in [queued for queued in self._queue if queued.pool is pool]:
            if pool.too_large(queued.request):
                self._reject(queued, refusals.too_large(queued.request))

    def worker_running(self, worker_id: str, attempts: Iterable[RunningAttempt]) -> None:
        """Takes a part of what a worker holds from before its session."""
        reported = self._workers[worker_id].reported
        if reported is not None:
            for attempt in attempts:
                if len(reported) >= MAX_REPORTED:
                    raise refusals.too_many_reported(MAX_REPORTED)
                reported[attempt.key] = attempt

    def worker_reported(self, worker_id: str, now: float) -> None:
        """Squares what a worker holds with what was known of it; it may be given work from now on."""
        worker = self._workers[worker_id]
        reported, worker.reported = worker.reported, None
        if reported is None:
            return
        for key, entry in list(worker.in_flight.items()):
            if key in reported:
                continue
            expiry = entry.grant.expires_at + GRANT_MARGIN_S if entry.grant and not entry.started else now
            if expiry > now:
                self._timers.put(entry, expiry)  # its batch was lost, its payload may still come
            else:
                self._timers.discard(entry)
                self._promises.end(entry)
        for attempt in reported.values():
            if (held := worker.in_flight.get(attempt.key)) is not None:
                if attempt.started:
                    self._timers.discard(held)
                    self._promises.progress(held, attempt.generated_tokens, prefilled=False)
            elif attempt.key in self._queue or self._promises.get(attempt.key) is not None:
                self._withdrawals.append(Withdrawal(attempt.key, worker_id))
            else:
                claim = self._claims.get(attempt.key)
                entry = self._promises.adopt(attempt, worker, claim.request if claim else None)
                if claim is not None:
                    self._attribute(entry, claim.request)
        self._claims.worker_reported(worker_id)
        self._came(worker)

    def worker_lost(self, worker_id: str, now: float) -> None:
        """Stops granting to a worker whose session broke; what it runs is kept until it returns or is forgotten."""
        worker = self._workers[worker_id]
        worker.attached, worker.reported = False, {}
        self._left(worker)
        for entry in worker.in_flight.values():
            self._timers.discard(entry)  # its return will tell
        self._timers.put(worker, now + self._limits.forget_worker_s)

    def worker_draining(self, worker_id: str) -> None:
        """Stops granting to a worker for this session of it."""
        worker = self._workers[worker_id]
        worker.draining = True
        self._left(worker)

    def engine_state(self, worker_id: str, state: EngineState) -> None:
        """Notes a worker's load; one whose engine cannot serve is granted nothing."""
        worker = self._workers[worker_id]
        was_healthy = worker.healthy
        worker.reports(state)
        if was_healthy and not worker.healthy:
            self._left(worker)
        elif worker.healthy and not was_healthy:
            self._came(worker)

    def progress(self, worker_id: str, key: AttemptKey, generated_tokens: int, prefilled: bool) -> None:
        """Charges an attempt's service since the report before; `generated_tokens` are the attempt's in all."""
        if (entry := self._entry(worker_id, key)) is not None:
            self._timers.discard(entry)
            if self._promises.progress(entry, generated_tokens, prefilled):
                self._changed[entry.worker.pool] = None  # what its engine will hold has changed

    def departure(
        self, worker_id: str, key: AttemptKey, *, generated_tokens: int, cached_tokens: int, started: bool
    ) -> None:
        """Settles an attempt that has ended and frees its room; one that no engine step was spent on costs nothing."""
        if (reported := self._workers[worker_id].reported) is not None:
            reported.pop(key, None)
        if (entry := self._entry(worker_id, key)) is not None:
            self._timers.discard(entry)
            self._changed[entry.worker.pool] = None
            if started:
                self._promises.settle(entry, generated_tokens, cached_tokens)
            else:
                self._promises.refund(entry)

    def entry_expired(self, worker_id: str, key: AttemptKey) -> None:
        """Frees the room of an attempt whose payload did not come in time."""
        self.departure(worker_id, key, generated_tokens=0, cached_tokens=0, started=False)

    # What follows.

    def due(self, now: float) -> bool:
        """Whether something has ended by time since the tick before."""
        first = self._timers.first()
        return first is not None and first[0] <= now

    def tick(self, now: float) -> Decisions:
        """Decides all that is to be decided now and returns what was since the tick before."""
        while (first := self._timers.first()) is not None and first[0] <= now:
            self._time_out(first[1], now)
        changed = self._pools.ordered(self._changed)
        self._changed = {}
        batches = [batch for pool in changed for batch in self._draw(pool, now)]
        evictions = [entry for pool in changed for entry in pool.take_evictions()]
        for pool in changed:
            if pool.empty:
                self._pools.close(pool)
        decisions = Decisions(
            batches=tuple(batches),
            repeats=tuple(self._repeats),
            rejections=tuple(self._rejections),
            withdrawals=tuple(self._withdrawals),
            evictions=tuple(Eviction(entry.key, entry.worker.info.id) for entry in evictions),
        )
        self._repeats, self._rejections, self._withdrawals = [], [], []
        return decisions

    def _draw(self, pool: Pool, now: float) -> list[Batch]:
        self._leads.bring(pool)
        drawn: dict[Worker, list[Grant]] = {}
        for queued, worker in pool.draw(now):
            grants = drawn.setdefault(worker, [])
            grant = Grant(
                request=queued.request,
                router=queued.router,
                worker_id=worker.info.id,
                worker_incarnation=worker.info.incarnation,
                worker_address=worker.info.address,
                epoch=self.epoch,
                batch_id=grants[0].batch_id if grants else next(self._batch_ids),
                kv_tokens=worker.info.capacity.kv_for(queued.request),
                priority=min(MAX_PRIORITY, pool.flows.tag(queued.flow) // PRIORITY_STEP),
                enqueued_at=queued.enqueued_at,
                granted_at=now,
                expires_at=now + self._limits.grant_expiry_s,
                queue_depth=pool.queued,
                measures=queued.measures,
            )
            self._timers.discard(queued)
            self._promises.grant(queued, worker, grant)
            self._queue.started(queued, now)
            worker.prefixes.granted(queued.request.prefix_hashes)
            grants.append(grant)
        return [Batch(w.info.id, grants[0].batch_id, self.epoch, tuple(grants)) for w, grants in drawn.items()]

    def _time_out(self, ended: Queued | InFlight | Worker, now: float) -> None:
        self._timers.discard(ended)
        match ended:
            case Queued() if ended.held_back and ended.start_at < ended.ends_at:
                self._queue.release(ended)
                self._changed[ended.pool] = None
                self._timers.put(ended, ended.due_at)
            case Queued() if ended.excluded and ended.excluded_until < ended.ends_at:
                self._queue.readmit(ended)
                self._changed[ended.pool] = None
                self._timers.put(ended, ended.due_at)
            case Queued():
                self._reject(ended, refusals.waited(ended, self._limits.retry_after_s, now))
            case InFlight():
                self._changed[ended.worker.pool] = None
                self._promises.refund(ended)
            case Worker():
                self._forget(ended)

    def _spells(self, worker_ids: frozenset[str]) -> frozenset[Spell]:
        workers = (self._workers.get(worker_id) for worker_id in worker_ids)
        return frozenset(worker.spell for worker in workers if worker is not None)

    def _pool(self, model: str, name: str) -> Pool:
        pool = self._pools.open(model, name)
        self._changed[pool] = None
        return pool

    def _flow(self, pool: Pool, request: Request) -> Flow[Queued]:
        service_class = request.service_class
        return pool.flows.flow(
            (service_class.name, 1000 * self._limits.class_weights[service_class]),
            (request.tenant_id, request.weight_milli),
            (request.key_id, 1000),
        )

    def _attribute(self, entry: InFlight, request: Request) -> None:
        if entry.flow is None:
            pool = self._pool(request.model, request.pool)
            self._promises.attribute(entry, pool, self._flow(pool, request), request)

    def _entry(self, worker_id: str, key: AttemptKey) -> InFlight | None:
        return self._workers[worker_id].in_flight.get(key)

    def _dequeue(self, queued: Queued) -> None:
        self._timers.discard(queued)
        self._queue.leave(queued)
        self._changed[queued.pool] = None

    def _reject(self, queued: Queued, error: MeshError) -> None:
        self._dequeue(queued)
        self.refuse(queued.request.key, queued.router, error)

    def _withdraw(self, entry: InFlight, *, refund: bool = True) -> None:
        self._withdrawals.append(Withdrawal(entry.key, entry.worker.info.id))
        self._timers.discard(entry)
        (self._promises.refund if refund else self._promises.end)(entry)
        self._changed[entry.worker.pool] = None

    def _came(self, worker: Worker) -> None:
        for pool in self._pools:
            if worker.pool is pool or worker.pool in pool.lenders:
                pool.worker_came()
                self._changed[pool] = None

    def _left(self, worker: Worker) -> None:
        self._changed[worker.pool] = None

    def _forget(self, worker: Worker) -> None:
        for entry in list(worker.in_flight.values()):
            self._timers.discard(entry)
            # Its routers go on elsewhere: what yielded nothing is charged there, and only there.
            (self._promises.end if entry.generated else self._promises.refund)(entry)
        self._left(worker)
        self._timers.discard(worker)
        del self._workers[worker.info.id], worker.pool.workers[worker.info.id]
