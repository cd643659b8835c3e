"""The scheduler's metrics: what it decides is counted as it does, and how its pools stand is looked at each second."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from prometheus_client import Gauge

from forebay.clock import Clock
from forebay.scheduler.domain.decisions import Decisions
from forebay.scheduler.domain.overview import fairness, standings, waiting
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler
from forebay.telemetry import metrics

OBSERVE_EVERY_S = 1.0

_shown: dict[Gauge, set[tuple[str, ...]]] = {
    gauge: set()
    for gauge in (
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
}
"""The label sets that each gauge has."""


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
    found = _measure(core, now) if core is not None else {}
    for gauge, shown in _shown.items():
        values = found.get(gauge, {})
        # Nothing is cleared that comes back at once: metrics are read by another thread.
        for labels in shown - values.keys():
            gauge.remove(*labels)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        _shown[gauge] = set(values)


def _measure(core: Scheduler, now: float) -> Mapping[Gauge, Mapping[tuple[str, ...], float]]:
    found: defaultdict[Gauge, dict[tuple[str, ...], float]] = defaultdict(dict)
    service: Counter[str] = Counter()
    owed: Counter[str] = Counter()
    for pool in core.pools:
        standing = standings(pool)
        found[metrics.FAIRNESS][pool.model, pool.name or "shared"] = fairness(standing)
        for each in standing:
            service[each.tenant_id] += each.received
            owed[each.tenant_id] += round(each.owed)
        for worker in pool.workers.values():
            capacity, labels = worker.info.capacity, (worker.info.id,)
            found[metrics.KV_USED][labels] = worker.engine.kv_tokens_used / capacity.kv_tokens
            found[metrics.KV_EXPECTED][labels] = worker.peak.tokens / capacity.kv_tokens
            found[metrics.SLOTS_USED][labels] = len(worker.in_flight) / capacity.max_num_seqs
            found[metrics.PREEMPTIONS][labels] = worker.engine.preemptions
            found[metrics.ALPHA][labels] = worker.rules.alpha - worker.lowered_by(now)
    named = {tenant for tenant, _ in service.most_common(metrics.MAX_TENANTS)}
    for gauge, amounts in ((metrics.TENANT_SERVICE, service), (metrics.TENANT_OWED, owed)):
        for tenant in named:
            found[gauge][tenant,] = amounts[tenant] / 10
        if len(amounts) > len(named):
            found[gauge][metrics.OTHERS,] = (amounts.total() - sum(amounts[tenant] for tenant in named)) / 10
    waits = list(waiting(core, now).values())
    for service_class in ServiceClass:
        entries = [of_pool[service_class] for of_pool in waits if service_class in of_pool]
        labels = (service_class.name.lower(),)
        found[metrics.QUEUED][labels] = sum(entry.queued for entry in entries)
        found[metrics.OLDEST_SECONDS][labels] = max((entry.oldest_s for entry in entries), default=0.0)
    return found
