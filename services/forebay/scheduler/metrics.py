"""The scheduler's metrics: what it decides is counted as it does, and how its pools stand is looked at each second."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from prometheus_client import Counter as Total
from prometheus_client import Gauge

from forebay.clock import Clock
from forebay.scheduler.domain.decisions import Decisions
from forebay.scheduler.domain.overview import fairness, standings, waiting
from forebay.scheduler.domain.request import ServiceClass
from forebay.scheduler.domain.scheduler import Scheduler

OBSERVE_EVERY_S = 1.0
# So many tenants are labels, those that were served most; what is left goes under OTHERS.
MAX_TENANTS = 100
OTHERS = "(others)"

# The scheduler's, of the one that leads. Service is in weighted tokens: input counts 1, cached input 0.1, output 2.
TENANT_SERVICE = Gauge("forebay_tenant_service_tokens", "Service received since this scheduler leads.", ["tenant"])
TENANT_OWED = Gauge("forebay_tenant_owed_tokens", "Service owed while something waited or ran.", ["tenant"])
FAIRNESS = Gauge(
    "forebay_pool_fairness", "Jain's index over tenants' service for what they were owed.", ["model", "pool"]
)
KV_USED = Gauge("forebay_worker_kv_used_ratio", "Part of the KV cache in use, as its engine says.", ["worker"])
KV_EXPECTED = Gauge("forebay_worker_kv_expected_ratio", "Part of the KV cache at the future peak.", ["worker"])
SLOTS_USED = Gauge("forebay_worker_slots_used_ratio", "Part of the engine's sequences in flight.", ["worker"])
ALPHA = Gauge("forebay_worker_alpha", "Part of the KV cache that the future peak may take.", ["worker"])
PREEMPTIONS = Gauge("forebay_worker_preemptions", "Preemptions since its engine started.", ["worker"])
QUEUED = Gauge("forebay_queue_requests", "Requests that wait.", ["service_class"])
OLDEST_SECONDS = Gauge("forebay_queue_oldest_seconds", "The longest wait of what waits.", ["service_class"])
GRANTS = Total("forebay_scheduler_grants_total", "Requests that were let run.")
EVICTIONS = Total("forebay_scheduler_evictions_total", "Requests that had to make room for others.")
REJECTIONS = Total("forebay_scheduler_rejections_total", "Requests that were turned away.", ["reason"])

_shown: dict[Gauge, set[tuple[str, ...]]] = {
    gauge: set()
    for gauge in (
        TENANT_SERVICE,
        TENANT_OWED,
        FAIRNESS,
        KV_USED,
        KV_EXPECTED,
        SLOTS_USED,
        ALPHA,
        PREEMPTIONS,
        QUEUED,
        OLDEST_SECONDS,
    )
}
"""The label sets that each gauge has."""


def count(decisions: Decisions) -> None:
    """Counts what a tick decided."""
    GRANTS.inc(sum(len(batch.grants) for batch in decisions.batches))
    EVICTIONS.inc(len(decisions.evictions))
    for rejection in decisions.rejections:
        REJECTIONS.labels(rejection.error.reason).inc()


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
        found[FAIRNESS][pool.model, pool.name or "shared"] = fairness(standing)
        for each in standing:
            service[each.tenant_id] += each.received
            owed[each.tenant_id] += round(each.owed)
        for worker in pool.workers.values():
            capacity, labels = worker.info.capacity, (worker.info.id,)
            found[KV_USED][labels] = worker.engine.kv_tokens_used / capacity.kv_tokens
            found[KV_EXPECTED][labels] = worker.peak.tokens / capacity.kv_tokens
            found[SLOTS_USED][labels] = len(worker.in_flight) / capacity.max_num_seqs
            found[PREEMPTIONS][labels] = worker.engine.preemptions
            found[ALPHA][labels] = worker.rules.alpha - worker.lowered_by(now)
    named = {tenant for tenant, _ in service.most_common(MAX_TENANTS)}
    for gauge, amounts in ((TENANT_SERVICE, service), (TENANT_OWED, owed)):
        for tenant in named:
            found[gauge][tenant,] = amounts[tenant] / 10
        if len(amounts) > len(named):
            found[gauge][OTHERS,] = (amounts.total() - sum(amounts[tenant] for tenant in named)) / 10
    waits = list(waiting(core, now).values())
    for service_class in ServiceClass:
        entries = [of_pool[service_class] for of_pool in waits if service_class in of_pool]
        labels = (service_class.name.lower(),)
        found[QUEUED][labels] = sum(entry.queued for entry in entries)
        found[OLDEST_SECONDS][labels] = max((entry.oldest_s for entry in entries), default=0.0)
    return found
