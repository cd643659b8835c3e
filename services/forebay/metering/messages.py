"""Protobuf to domain and back, field by field; the rules are the domain's."""

from __future__ import annotations

from google.protobuf import duration_pb2, timestamp_pb2

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.errors import Code, FieldViolation, MeshError
from forebay.metering.domain.charge import PriceLine
from forebay.metering.domain.entry import LedgerEntry
from forebay.metering.domain.event import NANO, Outcome, Source, UsageEvent, bad_event
from forebay.metering.domain.prices import Price
from forebay.metering.domain.selection import Dimension, Total, UsageFilter
from forebay.metering.price_book import Edition

_OUTCOMES = {metering_pb2.Outcome.Value(f"OUTCOME_{outcome.name}"): outcome for outcome in Outcome}
_SOURCES = {metering_pb2.EventSource.Value(f"EVENT_SOURCE_{source.name}"): source for source in Source}
_DIMENSIONS = {metering_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{d.name}"): d for d in Dimension}


def from_pb_event(message: metering_pb2.UsageEvent) -> UsageEvent:
    """Returns the event, unchecked but for what has no place in the domain's type.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_EVENT; the source or the outcome is none.
    """
    source = _SOURCES.get(message.source)
    outcome = _OUTCOMES.get(message.outcome)
    if source is None or outcome is None:
        unset = {"source": source, "outcome": outcome}
        raise bad_event(
            [
                FieldViolation(name, "must be one of the enum's values, not UNSPECIFIED")
                for name, v in unset.items()
                if v is None
            ]
        )
    return UsageEvent(
        request_id=message.request_id,
        attempt=message.attempt,
        source=source,
        tenant_id=message.tenant_id,
        key_id=message.key_id,
        plan=message.plan,
        priced_by_plan=message.priced_by_plan,
        service_class=message.service_class,
        model=message.model,
        adapter=message.adapter,
        pool=message.pool,
        worker_id=message.worker.id,
        worker_incarnation=message.worker.incarnation,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_from=message.completion_from,
        completion_to=message.completion_to,
        recomputed_tokens=message.recomputed_tokens,
        gpu_time_ns=_ns(message.gpu_time),
        recomputed_gpu_time_ns=_ns(message.recomputed_gpu_time),
        queue_time_ns=_ns(message.queue_time),
        time_to_first_token_ns=_ns(message.time_to_first_token) if message.HasField("time_to_first_token") else None,
        started_at_ns=_ns(message.started_at) if message.HasField("started_at") else None,
        finished_at_ns=_ns(message.finished_at),
        outcome=outcome,
        trace_id=message.trace_id,
        client_request_id=message.client_request_id,
        labels=dict(message.labels),
    )


def to_pb_event(event: UsageEvent) -> metering_pb2.UsageEvent:
    """Returns the event as it travels."""
    return metering_pb2.UsageEvent(
        request_id=event.request_id,
        attempt=event.attempt,
        source=metering_pb2.EventSource.ValueType(event.source),
        tenant_id=event.tenant_id,
        key_id=event.key_id,
        plan=event.plan,
        priced_by_plan=event.priced_by_plan,
        service_class=event.service_class,
        model=event.model,
        adapter=event.adapter,
        pool=event.pool,
        worker=common_pb2.Peer(id=event.worker_id, incarnation=event.worker_incarnation) if event.worker_id else None,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        completion_from=event.completion_from,
        completion_to=event.completion_to,
        recomputed_tokens=event.recomputed_tokens,
        gpu_time=_duration(event.gpu_time_ns),
        recomputed_gpu_time=_duration(event.recomputed_gpu_time_ns),
        queue_time=_duration(event.queue_time_ns),
        time_to_first_token=None if event.time_to_first_token_ns is None else _duration(event.time_to_first_token_ns),
        started_at=None if event.started_at_ns is None else _timestamp(event.started_at_ns),
        finished_at=_timestamp(event.finished_at_ns),
        outcome=metering_pb2.Outcome.Value(f"OUTCOME_{event.outcome.name}"),
        trace_id=event.trace_id,
        client_request_id=event.client_request_id,
        labels=event.labels,
    )


def to_pb_entry(entry: LedgerEntry) -> metering_pb2.LedgerEntry:
    """Returns a row as it travels."""
    row = entry.row
    return metering_pb2.LedgerEntry(
        position=row.position,
        event=to_pb_event(row.event),
        corrects=row.corrects,
        correction=row.corrects != 0,
        lines=[_to_pb_line(line) for line in row.lines],
        cost_nano_usd=row.cost_nano_usd,
        recorded_at=_timestamp(row.recorded_at_ns),
        billed_completion_tokens=row.usage.completion_tokens,
        billed_prompt_tokens=row.usage.prompt_tokens,
        chain_hash=entry.chain_hash,
    )


def from_pb_filter(message: metering_pb2.UsageFilter) -> UsageFilter:
    """Returns the filter, unchecked but for its outcomes.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_FILTER.
    """
    unknown = [number for number in message.outcomes if number not in _OUTCOMES]
    if unknown:
        violation = FieldViolation("filter.outcomes", f"{unknown[0]} is the number of no outcome")
        raise MeshError(
            Code.INVALID_ARGUMENT,
            "BAD_FILTER",
            f"filter.outcomes: {violation.description}",
            field_violations=[violation],
        )
    return UsageFilter(
        tenant_ids=frozenset(message.tenant_ids),
        key_ids=frozenset(message.key_ids),
        models=frozenset(message.models),
        request_ids=frozenset(message.request_ids),
        except_request_ids=frozenset(message.except_request_ids),
        outcomes=frozenset(_OUTCOMES[number] for number in message.outcomes),
        finished_from_ns=_ns(message.finished_from) if message.HasField("finished_from") else None,
        finished_before_ns=_ns(message.finished_before) if message.HasField("finished_before") else None,
    )


def from_pb_dimensions(numbers: list[metering_pb2.UsageDimension.ValueType]) -> list[Dimension]:
    """Returns what to add up by.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_DIMENSIONS; one is unknown or there twice.
    """
    if len(set(numbers)) < len(numbers) or not all(number in _DIMENSIONS for number in numbers):
        violation = FieldViolation("group_by", "must name each of tenant, key, model, day and outcome at most once")
        raise MeshError(
            Code.INVALID_ARGUMENT,
            "BAD_DIMENSIONS",
            f"group_by {violation.description}",
            field_violations=[violation],
        )
    return [_DIMENSIONS[number] for number in numbers]


def to_pb_total(total: Total) -> metering_pb2.UsageTotal:
    """Returns a total as it travels."""
    return metering_pb2.UsageTotal(
        group=total.group,
        requests=total.usage.requests,
        attempts=total.usage.attempts,
        prompt_tokens=total.usage.prompt_tokens,
        cached_tokens=total.usage.cached_tokens,
        completion_tokens=total.usage.completion_tokens,
        gpu_time=_duration(total.usage.gpu_time_ns),
        cost_nano_usd=total.cost_nano_usd,
    )


def to_pb_prices(edition: Edition) -> metering_pb2.WatchPricesResponse:
    """Returns a whole price table as it travels."""
    return metering_pb2.WatchPricesResponse(
        version=edition.version, prices=[_to_pb_price(price) for price in edition.table.prices]
    )


def _to_pb_line(line: PriceLine) -> metering_pb2.PriceLine:
    return metering_pb2.PriceLine(
        item=line.item.value,
        quantity=line.quantity,
        nano_usd_per_million=line.nano_usd_per_million,
        amount_nano_usd=line.amount_nano_usd,
        source=line.source,
    )


def _to_pb_price(price: Price) -> metering_pb2.Price:
    return metering_pb2.Price(
        subject=price.subject,
        item=price.item.value,
        nano_usd_per_million=price.nano_usd_per_million,
        effective_from=_timestamp(price.effective_from_ns),
        model=price.model,
    )


def _ns(span_or_time: duration_pb2.Duration | timestamp_pb2.Timestamp) -> int:
    return span_or_time.seconds * NANO + span_or_time.nanos


def _duration(ns: int) -> duration_pb2.Duration:
    seconds, nanos = divmod(ns, NANO)
    return duration_pb2.Duration(seconds=seconds, nanos=nanos)


def _timestamp(ns: int) -> timestamp_pb2.Timestamp:
    seconds, nanos = divmod(ns, NANO)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
