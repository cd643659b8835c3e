"""The scheduler's metrics: what it decides is counted as it does, and how its pools stand is looked at each second."""

from collections import Counter
from collections.abc import Callable

from forebay.clock import Clock
from forebay.scheduler.domain.decisions import Decisions
from forebay.scheduler.domain.overview import fairness, tenants, waiting
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.telemetry import metrics

OBSERVE_EVERY_S = 1.0

_GAUGES = (
    metrics.TENANT_SERVICE,
    metrics.TENANT_OWED,
    metrics.FAIRNESS,
    metrics.KV_USED,
    metrics.KV_EXPECTED,
    metrics.SLOTS_USED,
    metrics.ALPHA,
    metrics.PREEMPTIONS,
    metrics.QUEUED,
    metrics.OLDEST_SECONDS,
)


def count(decisions: Decisions) -> None:
    """Counts what a tick decided."""
    metrics.GRANTS.inc(sum(len(batch.grants) for batch in decisions.batches))
    metrics.EVICTIONS.inc(len(decisions.evictions))
    for rejection in decisions.rejections:
        metrics.REJECTIONS.labels(rejection.error.reason).inc()


async def watch(core: Callable[[], Scheduler | None], clock: Clock) -> None:
    """Observes again and again until cancelled."""
    while True:
        await clock.sleep(OBSERVE_EVERY_S)
        observe(core(), clock.monotonic())


def observe(core: Scheduler | None, now: float) -> None:
    """Sets the gauges to what holds now; there are none of a scheduler that follows, which has no core."""
    for gauge in _GAUGES:
        gauge.clear()
    if core is None:
        return
    service: Counter[str] = Counter()
    owed: Counter[str] = Counter()
    for pool in core.pools:
        metrics.FAIRNESS.labels(pool.model, pool.name or "shared").set(fairness(pool))
        for node in tenants(pool):
            service[node.name] += node.service_tenths
            owed[node.name] += round(node.owed_tenths())
        for worker in pool.workers.values():
            capacity, id = worker.info.capacity, worker.info.id
            metrics.KV_USED.labels(id).set(worker.engine.kv_tokens_used / capacity.kv_tokens)
            metrics.KV_EXPECTED.labels(id).set(worker.peak.tokens / capacity.kv_tokens)
            metrics.SLOTS_USED.labels(id).set(len(worker.in_flight) / capacity.max_num_seqs)
            metrics.PREEMPTIONS.labels(id).set(worker.engine.preemptions)
            metrics.ALPHA.labels(id).set(worker.rules.alpha - worker.lowered_by(now))
    named = {tenant for tenant, _ in service.most_common(metrics.MAX_TENANTS)}
    for tenant in service:
        label = tenant if tenant in named else metrics.OTHERS
        metrics.TENANT_SERVICE.labels(label).inc(service[tenant] / 10)
        metrics.TENANT_OWED.labels(label).inc(owed[tenant] / 10)
    waits = list(waiting(core, now).values())
    for service_class in ServiceClass:
        entries = [of_pool[service_class] for of_pool in waits if service_class in of_pool]
        label = service_class.name.lower()
        metrics.QUEUED.labels(label).set(sum(entry.queued for entry in entries))
        metrics.OLDEST_SECONDS.labels(label).set(max((entry.oldest_s for entry in entries), default=0.0))
