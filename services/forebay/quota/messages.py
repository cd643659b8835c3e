"""Quota's messages to and from values, with every bound on what a caller may send."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.errors import Code, FieldViolation, MeshError
from forebay.policy.messages import to_pb_limits
from forebay.quota.domain.comparison import Comparison
from forebay.quota.domain.limits import Usage, amounts_of
from forebay.quota.domain.plans import Plan
from forebay.quota.domain.prices import Price
from forebay.quota.domain.reservations import (
    Hold,
    Lease,
    LimitState,
    Observation,
    Order,
    Reservation,
    Router,
    State,
)
from forebay.rpc.status import from_pb_timestamp, nanoseconds_of, to_pb_duration

MAX_LEASES = 10_000
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
# Far above any model's context, and far below where a sum of many loses digits.
MAX_TOKENS = 10**9

MAX_GPU_TIME_S = 10**9
MAX_TIME_S = 9_223_372_036
_TIME_RULE = "must be a time from 1970 to 2262"

_ID = re.compile("[a-z0-9-]{1,63}")
_REQUEST_ID = re.compile("[0-9a-f]{32}")
_ID_RULE = "must be 1 to 63 of a-z, 0-9 and -"
_REQUEST_ID_RULE = "must be 32 lower-case hexadecimal digits"
# Another attempt may follow one that ended otherwise.
_FINAL = {
    metering_pb2.OUTCOME_COMPLETED,
    metering_pb2.OUTCOME_CANCELLED,
    metering_pb2.OUTCOME_FAILED,
    metering_pb2.OUTCOME_BUDGET_STOPPED,
}
_TOKENS_RULE = f"must be from 0 to {MAX_TOKENS}"


def from_pb_router(peer: common_pb2.Peer) -> Router:
    """Returns which life of which router calls."""
    require(
        (_ID.fullmatch(peer.id), "router.id", _ID_RULE),
        (peer.incarnation, "router.incarnation", "must be set"),
    )
    return Router(peer.id, peer.incarnation)


def from_pb_reserve(request: quota_pb2.ReserveRequest, router: Router) -> Order:
    """Returns what is to be reserved, for a router or, if one has admitted it by itself, for that life of the router."""
    if request.HasField("admitted_at"):
        life = from_pb_router(request.router)
        require(
            (life.id == router.id, "router.id", "must be the caller's"),
            (0 < request.admitted_at.seconds <= MAX_TIME_S, "admitted_at", _TIME_RULE),
        )
        router = life
    require(
        (_REQUEST_ID.fullmatch(request.request_id), "request_id", _REQUEST_ID_RULE),
        (_ID.fullmatch(request.tenant_id), "tenant_id", _ID_RULE),
        (0 <= request.prompt_tokens <= MAX_TOKENS, "prompt_tokens", _TOKENS_RULE),
        (0 <= request.max_completion_tokens <= MAX_TOKENS, "max_completion_tokens", _TOKENS_RULE),
    )
    return Order(request.request_id, router, request.prompt_tokens, request.max_completion_tokens)


def from_pb_settle(request: quota_pb2.SettleRequest) -> Usage:
    """Returns what was used; nothing at all by a request that never started."""
    require(
        (_REQUEST_ID.fullmatch(request.request_id), "request_id", _REQUEST_ID_RULE),
        (_ID.fullmatch(request.tenant_id), "tenant_id", _ID_RULE),
        (0 <= request.prompt_tokens <= MAX_TOKENS, "prompt_tokens", _TOKENS_RULE),
        (0 <= request.completion_tokens <= MAX_TOKENS, "completion_tokens", _TOKENS_RULE),
        (0 <= request.cached_tokens <= request.prompt_tokens, "cached_tokens", "must be from 0 to prompt_tokens"),
        (0 <= request.gpu_time.seconds <= MAX_GPU_TIME_S, "gpu_time", f"must be from 0 to {MAX_GPU_TIME_S} s"),
    )
    if not request.started:
        return Usage(0, 0, 0)
    return Usage(
        1, request.prompt_tokens, request.completion_tokens, request.cached_tokens, nanoseconds_of(request.gpu_time)
    )


def from_pb_hold(hold: quota_pb2.Hold, request_id: str, router: Router, field: str) -> Hold:
    """Returns what a router holds; `field` names it in an error."""
    require(
        (0 <= hold.prompt_tokens <= MAX_TOKENS, f"{field}.prompt_tokens", _TOKENS_RULE),
        (0 <= hold.max_completion_tokens <= MAX_TOKENS, f"{field}.max_completion_tokens", _TOKENS_RULE),
        (0 < hold.reserved_at.seconds <= MAX_TIME_S, f"{field}.reserved_at", _TIME_RULE),
    )
    order = Order(request_id, router, hold.prompt_tokens, hold.max_completion_tokens)
    return Hold(order, hold.key_id, hold.model, from_pb_timestamp(hold.reserved_at))


def from_pb_leases(leases: Sequence[quota_pb2.RenewRequest.Lease], router: Router) -> list[Lease]:
    """Returns the leases that a router renews."""
    require((len(leases) <= MAX_LEASES, "leases", f"must be at most {MAX_LEASES}"))
    for number, lease in enumerate(leases):
        require(
            (_REQUEST_ID.fullmatch(lease.request_id), f"leases[{number}].request_id", _REQUEST_ID_RULE),
            (_ID.fullmatch(lease.tenant_id), f"leases[{number}].tenant_id", _ID_RULE),
        )
    return [
        Lease(
            lease.tenant_id,
            lease.request_id,
            from_pb_hold(lease.hold, lease.request_id, router, f"leases[{number}].hold")
            if lease.HasField("hold")
            else None,
        )
        for number, lease in enumerate(leases)
    ]


def from_pb_entries(entries: Sequence[metering_pb2.LedgerEntry]) -> Observation:
    """Returns what the ledger says of a request, given all its rows in order, of which there is at least one."""
    used = Usage(
        1,
        sum(entry.billed_prompt_tokens for entry in entries),
        sum(entry.billed_completion_tokens for entry in entries),
        cost_nano_usd=sum(entry.cost_nano_usd for entry in entries),
    )
    last = max(entries, key=lambda entry: (entry.event.attempt, entry.position)).event
    return Observation(last.request_id, entries[-1].position, amounts_of(used), last.outcome in _FINAL)


def from_pb_price(price: metering_pb2.Price) -> Price:
    """Returns one price."""
    since_s = from_pb_timestamp(price.effective_from)
    return Price(price.subject, price.item, price.nano_usd_per_million, since_s, price.model)


def from_pb_tenant_id(tenant_id: str) -> str:
    """Returns a tenant's id."""
    require((_ID.fullmatch(tenant_id), "tenant_id", _ID_RULE))
    return tenant_id


def from_pb_page_size(page_size: int) -> int:
    """Returns how many items a page may have."""
    require((page_size <= MAX_PAGE, "page_size", f"must be at most {MAX_PAGE}"))
    return page_size or DEFAULT_PAGE


def to_pb_limit_state(state: LimitState, comparison: Comparison | None = None) -> quota_pb2.LimitState:
    """Returns the state of a limit as a message."""
    message = quota_pb2.LimitState(
        subject=state.subject,
        limit=state.limit,
        value=state.value,
        used=state.used,
        resets_in=to_pb_duration(state.resets_in_ms / 1000) if state.resets_in_ms else None,
    )
    if comparison is not None:
        message.comparison.as_of.FromMilliseconds(comparison.as_of_ms)
        message.comparison.counted = comparison.counted
        message.comparison.recorded = comparison.recorded
        message.comparison.difference = comparison.difference
    return message


def to_pb_reservation_state(reservation: Reservation) -> quota_pb2.ReservationState:
    """Returns a reservation as a message."""
    order = reservation.order
    message = quota_pb2.ReservationState(
        request_id=order.request_id,
        router=common_pb2.Peer(id=order.router.id, incarnation=order.router.incarnation),
        state=reservation.state.value,
        prompt_tokens=order.prompt_tokens,
        max_completion_tokens=order.max_completion_tokens,
    )
    message.reserved_at.FromMilliseconds(reservation.reserved_at_ms)
    if reservation.state is State.HELD:
        message.expires_at.FromMilliseconds(reservation.due_ms)
    return message


def to_pb_plan(plan: Plan) -> quota_pb2.Plan:
    """Returns a plan as a message."""
    return quota_pb2.Plan(
        name=plan.name,
        service_class=quota_pb2.ServiceClass.ValueType(plan.service_class.value),
        weight_milli=plan.weight_milli,
        limits=to_pb_limits(plan.limits_in(plan.service_class)),
        nano_usd_per_million_tokens=plan.nano_usd_per_million_tokens,
        alert_percent=plan.alert_percent,
    )


def require(*checks: tuple[object, str, str]) -> None:
    """Raises INVALID_ARGUMENT naming every field whose check is falsy; a check is (holds, field, rule)."""
    violations = [FieldViolation(field, rule) for holds, field, rule in checks if not holds]
    if violations:
        sentence = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise MeshError(Code.INVALID_ARGUMENT, "INVALID_REQUEST", sentence, field_violations=violations)
