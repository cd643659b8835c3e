"""Protobuf to domain and back. What comes in is checked here, field by field; nothing unbounded gets further than this."""

import re
from collections.abc import Iterable, Iterator

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.errors import Code, FieldViolation, MeshError
from forebay.rpc.status import from_pb_duration, to_pb_duration, to_pb_error
from forebay.scheduler.domain.decisions import Batch, Grant
from forebay.scheduler.domain.flow import Flow
from forebay.scheduler.domain.overview import Waiting, fairness, standings
from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.request import AttemptKey, Queued, Request, ServiceClass, Trace
from forebay.scheduler.domain.worker import Capacity, EngineState, RunningAttempt, Worker, WorkerInfo

MAX_NAME = 256
MAX_EXCLUDED = 64
MAX_PREFIX_HASHES = 256
MAX_TRACESTATE = 512
MAX_WEIGHT_MILLI = 1_000_000

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_PEER_ID = re.compile(r"[a-z0-9-]{1,63}")
_CLASSES = {
    quota_pb2.SERVICE_CLASS_GOLD: ServiceClass.GOLD,
    quota_pb2.SERVICE_CLASS_SILVER: ServiceClass.SILVER,
    quota_pb2.SERVICE_CLASS_BRONZE: ServiceClass.BRONZE,
}
_TO_PB_CLASS = {service_class: message for message, service_class in _CLASSES.items()}


def from_pb_ref(message: scheduler_pb2.AttemptRef) -> AttemptKey:
    """Returns the attempt that a message names.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_ATTEMPT.
    """
    if not _REQUEST_ID.fullmatch(message.request_id) or not message.attempt:
        raise MeshError(
            Code.INVALID_ARGUMENT, "BAD_ATTEMPT", "an attempt is 32 lower-case hex digits and a number from 1"
        )
    return AttemptKey(message.request_id, message.attempt)


def to_pb_ref(key: AttemptKey) -> scheduler_pb2.AttemptRef:
    """Returns an attempt's name for a message."""
    return scheduler_pb2.AttemptRef(request_id=key.request_id, attempt=key.attempt)


def from_pb_peer(message: common_pb2.Peer) -> tuple[str, int]:
    """Returns a replica's id and incarnation.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_PEER.
    """
    if not _PEER_ID.fullmatch(message.id) or not message.incarnation:
        raise MeshError(
            Code.INVALID_ARGUMENT, "BAD_PEER", "a session begins with the caller's id ([a-z0-9-]) and its incarnation"
        )
    return message.id, message.incarnation


def from_pb_submission(message: scheduler_pb2.Submission) -> Request:
    """Returns a request.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_SUBMISSION with every field that is wrong.
    """
    _refuse("BAD_SUBMISSION", _submission_violations(message))
    return Request(
        key=from_pb_ref(message.ref),
        tenant_id=message.tenant_id,
        service_class=_CLASSES[message.service_class],
        key_id=message.key_id,
        weight_milli=message.weight_milli,
        model=message.model,
        pool=message.pool,
        adapter=message.adapter,
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        least_max_tokens=message.least_max_tokens,
        pinned=message.pinned,
        delivered_tokens=message.delivered_tokens,
        prefix_hashes=tuple(message.prefix_hashes),
        prefix_block_tokens=message.prefix_block_tokens,
        start_after_s=from_pb_duration(message.start_after),
        waited_s=from_pb_duration(message.waited),
        remaining_s=from_pb_duration(message.remaining) if message.HasField("remaining") else None,
        queue_timeout_s=from_pb_duration(message.queue_timeout) if message.HasField("queue_timeout") else None,
        excluded_workers=frozenset(message.excluded_workers),
        trace=_from_pb_trace(message.trace),
    )


def _submission_violations(message: scheduler_pb2.Submission) -> Iterator[FieldViolation]:
    for name, value in (("tenant_id", message.tenant_id), ("model", message.model)):
        if not 1 <= len(value) <= MAX_NAME:
            yield FieldViolation(name, f"1 to {MAX_NAME} characters")
    for name, value in (("key_id", message.key_id), ("pool", message.pool), ("adapter", message.adapter)):
        if len(value) > MAX_NAME:
            yield FieldViolation(name, f"at most {MAX_NAME} characters")
    if message.service_class not in _CLASSES:
        yield FieldViolation("service_class", "gold, silver or bronze")
    if not 1 <= message.weight_milli <= MAX_WEIGHT_MILLI:
        yield FieldViolation("weight_milli", f"1 to {MAX_WEIGHT_MILLI}")
    if not message.prompt_tokens:
        yield FieldViolation("prompt_tokens", "at least 1")
    if not message.max_tokens:
        yield FieldViolation("max_tokens", "at least 1")
    if message.delivered_tokens >= max(message.prompt_tokens, 1):
        yield FieldViolation("delivered_tokens", "fewer than prompt_tokens, which include them")
    if len(message.prefix_hashes) > MAX_PREFIX_HASHES:
        yield FieldViolation("prefix_hashes", f"at most {MAX_PREFIX_HASHES}")
    if len(message.excluded_workers) > MAX_EXCLUDED:
        yield FieldViolation("excluded_workers", f"at most {MAX_EXCLUDED}")
    for name, span in (("waited", message.waited), ("start_after", message.start_after)):
        if from_pb_duration(span) < 0:
            yield FieldViolation(name, "not below 0")


def _from_pb_trace(message: common_pb2.TraceContext) -> Trace:
    """Returns a trace's context; an empty one for a larger one than there can be, which is no reason to refuse a request."""
    if len(message.traceparent) > MAX_NAME or len(message.tracestate) > MAX_TRACESTATE:
        return Trace()
    return Trace(message.traceparent, message.tracestate)


def from_pb_register(message: scheduler_pb2.AttachRequest.Register) -> WorkerInfo:
    """Returns what a worker says of itself.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_PEER, or BAD_REGISTER with every field that is wrong.
    """
    worker_id, incarnation = from_pb_peer(message.worker)
    _refuse("BAD_REGISTER", _register_violations(message))
    capacity = message.capacity
    return WorkerInfo(
        id=worker_id,
        incarnation=incarnation,
        address=message.address,
        model=message.model,
        pool=message.pool,
        capacity=Capacity(
            kv_tokens=capacity.kv_tokens,
            block_tokens=capacity.block_tokens,
            max_num_seqs=capacity.max_num_seqs,
            max_num_batched_tokens=capacity.max_num_batched_tokens,
            max_model_len=capacity.max_model_len,
            max_adapters=capacity.max_adapters,
        ),
    )


def _register_violations(message: scheduler_pb2.AttachRequest.Register) -> Iterator[FieldViolation]:
    for name, value in (("address", message.address), ("model", message.model)):
        if not 1 <= len(value) <= MAX_NAME:
            yield FieldViolation(name, f"1 to {MAX_NAME} characters")
    if len(message.pool) > MAX_NAME:
        yield FieldViolation("pool", f"at most {MAX_NAME} characters")
    capacity = message.capacity
    sizes = {
        "kv_tokens": capacity.kv_tokens,
        "block_tokens": capacity.block_tokens,
        "max_num_seqs": capacity.max_num_seqs,
        "max_num_batched_tokens": capacity.max_num_batched_tokens,
        "max_model_len": capacity.max_model_len,
    }
    for name, size in sizes.items():
        if not size:
            yield FieldViolation(f"capacity.{name}", "at least 1")


def from_pb_running(message: scheduler_pb2.RunningAttempt) -> RunningAttempt:
    """Returns what a worker holds from before its session.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_ATTEMPT.
    """
    return RunningAttempt(
        key=from_pb_ref(message.ref),
        tenant_id=message.tenant_id,
        kv_tokens=message.kv_tokens,
        generated_tokens=message.generated_tokens,
        started=message.started,
    )


def from_pb_engine_state(message: scheduler_pb2.EngineState) -> EngineState:
    """Returns an engine's load."""
    return EngineState(
        running=message.running,
        waiting=message.waiting,
        kv_tokens_used=message.kv_tokens_used,
        preemptions=message.preemptions,
        healthy=message.healthy,
        adapters=tuple(message.adapters),
    )


def to_pb_grant(grant: Grant, now: float) -> scheduler_pb2.Grant:
    """Returns a grant with the time that is left for it."""
    return scheduler_pb2.Grant(
        ref=to_pb_ref(grant.request.key),
        worker_id=grant.worker_id,
        worker_incarnation=grant.worker_incarnation,
        worker_address=grant.worker_address,
        epoch=grant.epoch,
        batch_id=grant.batch_id,
        tenant_id=grant.request.tenant_id,
        adapter=grant.request.adapter,
        priority=grant.priority,
        prompt_tokens=grant.request.prompt_tokens,
        max_tokens=grant.request.max_tokens,
        kv_tokens=grant.kv_tokens,
        expires_in=to_pb_duration(max(0.0, grant.expires_at - now)),
        waited=to_pb_duration(max(0.0, grant.granted_at - grant.enqueued_at)),
        measures=[scheduler_pb2.Measure.ValueType(measure.value) for measure in grant.measures],
    )


def to_pb_batch(batch: Batch, now: float) -> scheduler_pb2.Batch:
    """Returns a batch for its worker."""
    entries = [
        scheduler_pb2.Batch.Entry(
            ref=to_pb_ref(grant.request.key),
            tenant_id=grant.request.tenant_id,
            adapter=grant.request.adapter,
            kv_tokens=grant.kv_tokens,
            expires_in=to_pb_duration(max(0.0, grant.expires_at - now)),
            trace=common_pb2.TraceContext(
                traceparent=grant.request.trace.traceparent, tracestate=grant.request.trace.tracestate
            ),
        )
        for grant in batch.grants
    ]
    return scheduler_pb2.Batch(batch_id=batch.batch_id, epoch=batch.epoch, entries=entries)


def to_pb_rejection(key: AttemptKey, error: MeshError) -> scheduler_pb2.ScheduleResponse.Rejection:
    """Returns the end of a queued request."""
    return scheduler_pb2.ScheduleResponse.Rejection(ref=to_pb_ref(key), error=to_pb_error(error))


def to_pb_pool(pool: Pool, waiting: Iterable[Waiting], now: float) -> scheduler_pb2.DescribePoolsResponse.Pool:
    """Returns a pool as operators see it; `waiting` is what waits in it, by class."""
    return scheduler_pb2.DescribePoolsResponse.Pool(
        name=pool.name,
        model=pool.model,
        workers=[_to_pb_worker(pool.workers[worker_id], now) for worker_id in sorted(pool.workers)],
        flows=[_to_pb_flow(flow) for flow in pool.flows.flows()],
        queued=pool.queued,
        lenders=[lender.name for lender in pool.lenders],
        lends=pool.rules.lends,
        waiting=[
            scheduler_pb2.DescribePoolsResponse.Waiting(
                service_class=_TO_PB_CLASS[each.service_class],
                queued=each.queued,
                oldest=to_pb_duration(each.oldest_s),
            )
            for each in waiting
        ],
        service_tenths=max(0, pool.flows.root.service_tenths),
        fairness=fairness(standings(pool)),
    )


def _to_pb_worker(worker: Worker, now: float) -> scheduler_pb2.DescribePoolsResponse.Worker:
    info, capacity, engine = worker.info, worker.info.capacity, worker.engine
    return scheduler_pb2.DescribePoolsResponse.Worker(
        worker=common_pb2.Peer(id=info.id, incarnation=info.incarnation),
        address=info.address,
        capacity=scheduler_pb2.Capacity(
            kv_tokens=capacity.kv_tokens,
            block_tokens=capacity.block_tokens,
            max_num_seqs=capacity.max_num_seqs,
            max_num_batched_tokens=capacity.max_num_batched_tokens,
            max_model_len=capacity.max_model_len,
            max_adapters=capacity.max_adapters,
        ),
        engine=scheduler_pb2.EngineState(
            running=engine.running,
            waiting=engine.waiting,
            kv_tokens_used=engine.kv_tokens_used,
            preemptions=engine.preemptions,
            healthy=engine.healthy and worker.attached,
            adapters=engine.adapters,
        ),
        kv_tokens_promised=worker.promised,
        in_flight=len(worker.in_flight),
        draining=worker.draining,
        alpha=worker.rules.alpha - worker.lowered_by(now),
        alpha_lowered=worker.lowered_by(now),
        kv_tokens_expected=worker.peak.tokens,
        kv_tokens_lent=worker.lent,
    )


def _to_pb_flow(flow: Flow[Queued]) -> scheduler_pb2.DescribePoolsResponse.Flow:
    return scheduler_pb2.DescribePoolsResponse.Flow(
        tenant_id=flow.tenant.name,
        key_id=flow.name,
        service_class=_TO_PB_CLASS[ServiceClass[flow.path[0]]],
        queued=flow.queued,
        in_flight=flow.in_flight,
        service_tenths=flow.service_tenths,
        owed_tenths=max(0, round(flow.owed_tenths())),
        virtual_counter=max(0, flow.tenant.virtual_tenths),
        weight_milli=flow.tenant.weight_milli,
        share=flow.share,
        kv_tokens=flow.kv_tokens,
    )


def _refuse(reason: str, violations: Iterator[FieldViolation]) -> None:
    if found := list(violations):
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise MeshError(Code.INVALID_ARGUMENT, reason, message, field_violations=found)
