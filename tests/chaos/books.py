"""Reads what the mesh has written down, as its operator sees it: the ledger with its positions, reservations and limits."""

from __future__ import annotations

from collections.abc import Collection

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.testing.processes import MeshProcesses

from .records import Books, Row

DEADLINE_S = 20.0
# What the ledger says, too; a month goes on at midnight.
BUDGETS = ("tokens_per_day", "monthly_budget_nano_usd")


async def read_books(mesh: MeshProcesses, tenants: Collection[str]) -> Books:
    """Returns all of it.

    Raises:
        grpc.aio.AioRpcError: a service did not answer.
    """
    rows: list[Row] = []
    open_reservations: list[str] = []
    slots = 0
    budgets: dict[str, dict[str, int]] = {}
    async with mesh.channel("metering") as metering, mesh.channel("quota") as quota:
        pages = metering_pb2_grpc.MeteringServiceStub(metering).StreamUsage(
            metering_pb2.StreamUsageRequest(filter=metering_pb2.UsageFilter(tenant_ids=list(tenants))),
            timeout=DEADLINE_S,
        )
        async for page in pages:
            rows += map(_row, page.entries)
        stub: quota_pb2_grpc.QuotaServiceAsyncStub = quota_pb2_grpc.QuotaServiceStub(quota)
        for tenant in tenants:
            open_reservations += await _open_reservations(stub, tenant)
            peek = await stub.Peek(quota_pb2.PeekRequest(tenant_id=tenant), timeout=DEADLINE_S)
            slots += sum(limit.used for limit in peek.limits if limit.limit == "concurrent_requests")
            budgets[tenant] = {limit.limit: limit.used for limit in peek.limits if limit.limit in BUDGETS}
    return Books(tuple(rows), tuple(open_reservations), slots, budgets)


async def _open_reservations(stub: quota_pb2_grpc.QuotaServiceAsyncStub, tenant: str) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await stub.ListReservations(
            quota_pb2.ListReservationsRequest(tenant_id=tenant, page_size=1_000, page_token=token), timeout=DEADLINE_S
        )
        found += [
            f"{tenant} {reservation.request_id} {reservation.state}"
            for reservation in page.reservations
            if reservation.state != "settled"
        ]
        token = page.next_page_token
        if not token:
            return found


def _row(entry: metering_pb2.LedgerEntry) -> Row:
    event = entry.event
    return Row(
        position=entry.position,
        corrects=entry.corrects,
        tenant=event.tenant_id,
        request_id=event.request_id,
        label=event.client_request_id,
        attempt=event.attempt,
        source=metering_pb2.EventSource.Name(event.source).removeprefix("EVENT_SOURCE_"),
        completion_from=event.completion_from,
        prompt_tokens=entry.billed_prompt_tokens,
        completion_tokens=entry.billed_completion_tokens,
        cost_nano_usd=entry.cost_nano_usd,
    )
