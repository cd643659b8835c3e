"""The product's own core behind the loop: what routers and workers would tell it by session, it is told here directly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.request import AttemptKey, Request, ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.scheduler.domain.worker import Capacity, EngineState, WorkerInfo
from forebay.simulator.dispatcher import Ask, Evict, Orders, Refusal, Report, Start
from forebay.simulator.engine import EngineShape

MODEL = "simulated"
ROUTER = "router"
PATIENT = Limits(max_queued=1_000_000, max_queued_per_tenant=1_000_000, queue_timeout_s=1e9, grant_expiry_s=60.0)
"""Nobody is refused for the length of a queue, since no baseline refuses; and a report may be late without a grant expiring."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A client's class, and its tenant's weight in it, in thousandths; the tenant is its own unless it is one of its keys."""

    service_class: ServiceClass = ServiceClass.SILVER
    weight_milli: int = 1000
    tenant: str = ""


class ForebayDispatcher:
    """Drives `Scheduler`.

    Args:
        shape: of each engine.
        workers: how many there are.
        standings: of clients; silver and weight 1 for those that are not named.
        limits: of the core.
    """

    def __init__(
        self,
        shape: EngineShape,
        workers: int = 1,
        standings: Mapping[str, Standing] | None = None,
        limits: Limits = PATIENT,
    ) -> None:
        self.core = Scheduler(limits, epoch=1)
        self._standings = standings or {}
        self._requests: dict[int, Request] = {}
        self._arrived: dict[int, float] = {}
        capacity = Capacity(
            kv_tokens=shape.kv_tokens,
            block_tokens=shape.block_tokens,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            max_model_len=shape.max_model_len,
        )
        for index in range(workers):
            self.core.worker_registered(WorkerInfo(_worker_id(index), 1, f"{index}:1", MODEL, capacity))
            self.core.worker_reported(_worker_id(index), 0.0)

    def submit(self, ask: Ask, now: float) -> None:
        """See `Dispatcher`."""
        standing = self._standings.get(ask.client, Standing())
        request = self._requests[ask.id] = Request(
            key=AttemptKey(str(ask.id), 1),
            tenant_id=standing.tenant or ask.client,
            key_id=ask.client,
            service_class=standing.service_class,
            weight_milli=standing.weight_milli,
            model=MODEL,
            prompt_tokens=ask.prompt,
            max_tokens=ask.max_tokens,
        )
        self._arrived[ask.id] = now
        self.core.submit(request, ROUTER, now)

    def reported(self, report: Report, now: float) -> None:
        """See `Dispatcher`."""
        worker_id = _worker_id(report.worker)
        ended = dict(report.finished)
        for id, generated in report.progress:
            if id not in ended:
                request = self._requests[id]
                self.core.progress(worker_id, request.key, generated - request.delivered_tokens, prefilled=True)
        for id, generated in report.finished:
            self._depart(worker_id, self._requests.pop(id), generated)
            del self._arrived[id]
        for id, generated in report.handed_over:
            request = self._requests[id]
            self._depart(worker_id, request, generated)
            self._continue(id, request, generated, now)
        state = EngineState(report.running, report.waiting, report.kv_tokens_used, report.preemptions)
        self.core.engine_state(worker_id, state)

    def tick(self, now: float) -> Orders:
        """See `Dispatcher`."""
        decisions = self.core.tick(now)
        orders = Orders()
        for batch in decisions.batches:
            orders.starts += [
                Start(int(grant.request.key.request_id), _index(batch.worker_id)) for grant in batch.grants
            ]
        for rejection in decisions.rejections:
            id = int(rejection.key.request_id)
            del self._requests[id], self._arrived[id]
            orders.refusals.append(Refusal(id, rejection.error.reason.lower()))
        for eviction in decisions.evictions:
            orders.evictions.append(Evict(int(eviction.key.request_id), _index(eviction.worker_id)))
        return orders

    def _depart(self, worker_id: str, request: Request, generated: int) -> None:
        own = generated - request.delivered_tokens
        self.core.departure(worker_id, request.key, generated_tokens=own, cached_tokens=0, started=own > 0)

    def _continue(self, id: int, request: Request, generated: int, now: float) -> None:
        own = generated - request.delivered_tokens
        request = self._requests[id] = replace(
            request,
            key=AttemptKey(str(id), request.key.attempt + 1),
            prompt_tokens=request.prompt_tokens + own,
            max_tokens=request.max_tokens - own,
            delivered_tokens=generated,
            waited_s=now - self._arrived[id],
        )
        self.core.submit(request, ROUTER, now)


def _worker_id(index: int) -> str:
    return f"worker-{index}"


def _index(worker_id: str) -> int:
    return int(worker_id.removeprefix("worker-"))
