"""All that waits: who may join, in which place, and for how long.

A request joins its flow, or is held back first: while its tenant is slowed down (`start_after_s`, from the quota's soft
limits) or paced (pressure.py) it does not count as waiting. Within a flow the one that must start earliest is first, so
that among requests which say nothing it is the one that came first; a continuation, whose client reads already, goes before
all others.

A continuation may exclude the worker on which the attempt before broke. That is a preference with an end: the router knows only
that its own session broke, and the worker may have been paused, or be the only one. So the exclusion ends when the worker has
come back, in another life or on another session with the scheduler, and after EXCLUDED_S at the latest. It lasts twice as long
for each further attempt, up to MAX_EXCLUDED_S, so that a worker that its router cannot reach does not use up all attempts of a
request at once.

Who cannot be served is told so at once: when the queue or the tenant's part of it is full, when its class is shed, and
when at the pace at which its flow was served lately it would start too late.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from forebay.scheduler.domain import refusals
from forebay.scheduler.domain.flow import Flow
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.request import AttemptKey, Measure, Queued, Request, Spell

PACE_SMOOTHING = 0.2
"""How much the latest time between two services of a flow counts for its pace."""


EXCLUDED_S = 1.0
"""How long the second attempt of a request keeps away from the worker of the first. A worker that has died is missed sooner."""

MAX_EXCLUDED_S = 8.0
"""How long a later attempt does at most."""


class Queue:
    """The requests that wait, in all pools; those held back included."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[AttemptKey, Queued] = {}
        self._by_tenant: dict[str, int] = {}
        self._arrivals = itertools.count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._waiting

    def __iter__(self) -> Iterator[Queued]:
        """Yields what waits, in order of arrival; it must not change meanwhile."""
        return iter(self._waiting.values())

    def get(self, key: AttemptKey) -> Queued | None:
        """Returns a request that waits."""
        return self._waiting.get(key)

    def join(
        self,
        request: Request,
        router: str,
        pool: Pool,
        flow: Flow[Queued],
        excluded: frozenset[Spell],
        now: float,
    ) -> Queued:
        """Takes a request in.

        Raises:
            MeshError: it cannot be served, in time or at all.
        """
        patience = self._patience(request, pool)
        self._refuse(request, pool, flow, patience, now)
        request, start_after_s, measures = self._relieved(request)
        enqueued_at = now - request.waited_s
        named = request.remaining_s is not None or request.queue_timeout_s is not None
        start_by = now + patience if named else enqueued_at + self._limits.queue_timeout_s
        queued = self._waiting[request.key] = Queued(
            request=request,
            router=router,
            pool=pool,
            flow=flow,
            place=(enqueued_at if request.delivered_tokens else start_by, next(self._arrivals)),
            enqueued_at=enqueued_at,
            ends_at=now + patience,
            start_at=now + start_after_s,
            deadline=None if request.remaining_s is None else now + request.remaining_s,
            excluded=excluded,
            excluded_until=now + _excluded_s(request.key.attempt),
            measures=measures,
        )
        self._by_tenant[request.tenant_id] = self._by_tenant.get(request.tenant_id, 0) + 1
        pool.queued += 1
        if not start_after_s:
            self.release(queued)
        return queued

    def release(self, queued: Queued) -> None:
        """Lets a request that was held back count as waiting."""
        queued.held_back = False
        queued.pool.enqueue(queued)

    def readmit(self, queued: Queued) -> None:
        """Lets a request run on the workers that it excluded, too."""
        queued.excluded = frozenset()
        queued.pool.unpark(queued)

    def leave(self, queued: Queued) -> None:
        """Takes out a request that is not to run."""
        self._forget(queued)
        if not queued.held_back:
            queued.pool.dequeue(queued)

    def started(self, queued: Queued, now: float) -> None:
        """Forgets a request that has just left its flow to run, and notes the pace of a flow that still waits."""
        self._forget(queued)
        flow = queued.flow
        if not flow.queue:
            return
        if flow.dispatched_at is not None:
            gap = now - flow.dispatched_at
            flow.gap_s = gap if flow.gap_s is None else flow.gap_s + PACE_SMOOTHING * (gap - flow.gap_s)
        flow.dispatched_at = now

    def _forget(self, queued: Queued) -> None:
        tenant_id = queued.request.tenant_id
        del self._waiting[queued.request.key]
        queued.pool.queued -= 1
        left = self._by_tenant[tenant_id] - 1
        if left:
            self._by_tenant[tenant_id] = left
        else:
            del self._by_tenant[tenant_id]

    def _refuse(self, request: Request, pool: Pool, flow: Flow[Queued], patience: float, now: float) -> None:
        limits, retry_after_s = self._limits, self._limits.retry_after_s
        known = (request.model, request.adapter, request.tenant_id) in limits.adapters
        if request.adapter and not (known and pool.takes_adapters):
            raise refusals.unknown_adapter(request)
        if pool.too_large(request):
            raise refusals.too_large(request)
        if request.delivered_tokens:
            return  # its client reads already: it is shed by nothing but its own deadline
        if self._by_tenant.get(request.tenant_id, 0) >= limits.max_queued_per_tenant:
            raise refusals.queue_full("the tenant", retry_after_s)
        if len(self._waiting) >= limits.max_queued:
            raise refusals.queue_full("the scheduler", retry_after_s)
        if limits.pressure.sheds(len(self._waiting) / limits.max_queued, request.service_class):
            raise refusals.shed(request.service_class, retry_after_s)
        wait = _predicted_wait(flow, patience, now)
        if wait > patience:
            raise refusals.unreachable(wait, retry_after_s)

    def _relieved(self, request: Request) -> tuple[Request, float, tuple[Measure, ...]]:
        """Returns the request as it is taken in under the present pressure, how long it is held back, and what was done."""
        rules = self._limits.pressure
        pressure = len(self._waiting) / self._limits.max_queued
        start_after_s, measures = request.start_after_s, []
        part = self._by_tenant.get(request.tenant_id, 0) / max(1, len(self._waiting))
        if not request.delivered_tokens and rules.paces(pressure, part, len(self._by_tenant)):
            start_after_s += rules.paced_s
            measures.append(Measure.PACED)
        if 0 < request.least_max_tokens < request.max_tokens and rules.shortens(pressure):
            request = replace(request, max_tokens=request.least_max_tokens)
            measures.append(Measure.SHORTENED)
        return request, start_after_s, tuple(measures)

    def _patience(self, request: Request, pool: Pool) -> float:
        """Returns how long a request may wait from now on, in seconds."""
        limit = self._limits.queue_timeout_s
        spans = [span for span in (request.remaining_s, request.queue_timeout_s) if span is not None]
        wait = min(spans, default=limit)
        return wait if pool.workers else min(wait, limit)


def _excluded_s(attempt: int) -> float:
    """Returns for how long an attempt keeps away from where the one before broke."""
    return min(MAX_EXCLUDED_S, EXCLUDED_S * 2.0 ** min(max(0, attempt - 2), 16))


def _predicted_wait(flow: Flow[Queued], patience: float, now: float) -> float:
    """Returns after how many seconds a new request of a flow would start, by the flow's pace; 0 when nothing is known."""
    if flow.gap_s is None or flow.dispatched_at is None:
        return 0.0
    gap = max(flow.gap_s, now - flow.dispatched_at)
    if gap * (flow.queued + 1) <= patience:
        return 0.0
    return gap * (1 + sum(1 for place, _ in flow.queue if place[0] <= now + patience))
